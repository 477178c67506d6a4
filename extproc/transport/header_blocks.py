"""Request header blocks -> fields, decoded once for each distinct block.

A block may be looked up by its bytes only when it depends on nothing but its bytes. We announce a header table of
size 0, so that holds for every block after the peer acknowledged our SETTINGS; before that, blocks are decoded in
order with the table that RFC 7541 gives a new connection. A block that could still read or write a table is never
kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hpack import Decoder, HPACKError

KEPT_BLOCKS = 1024
KEPT_BLOCK_BYTES = 4096
HEADER_LIST_LIMIT_BYTES = 64 * 1024

_PSEUDO = frozenset({":method", ":scheme", ":path", ":authority"})
_REQUIRED = frozenset({":method", ":scheme", ":path"})
_CONNECTION_SPECIFIC = frozenset({"connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade"})

Fields = Mapping[str, str]


class BadBlockError(Exception):
    """The block cannot be decoded: the compression state of its connection is lost."""


class KnownBlocks:
    """Blocks seen before, shared by all connections: block -> fields, None for a malformed request."""

    def __init__(self) -> None:
        self._known: dict[bytes, Fields | None] = {}

    def __contains__(self, block: bytes) -> bool:
        return block in self._known

    def __getitem__(self, block: bytes) -> Fields | None:
        return self._known[block]

    def __len__(self) -> int:
        return len(self._known)

    def keep(self, block: bytes, fields: Fields | None) -> None:
        """Remember a block that depends on nothing but its bytes."""
        if len(block) > KEPT_BLOCK_BYTES:
            return
        if len(self._known) >= KEPT_BLOCKS:
            self._known.clear()
        self._known[block] = fields


class BlockReader:
    """The decoder of one connection."""

    def __init__(self, known: KnownBlocks) -> None:
        self._known = known
        self._decoder = Decoder(HEADER_LIST_LIMIT_BYTES)
        self._off = False
        self._stateless = False

    def table_is_off(self) -> None:
        """Note that the peer acknowledged our table size of 0."""
        self._decoder.max_allowed_table_size = 0
        self._off = True

    def read(self, block: bytes) -> Fields | None:
        """Return a request's fields, None when they are malformed; raises BadBlockError."""
        known = self._known
        if self._stateless and block in known:
            return known[block]
        try:
            fields = request_fields(self._decoder.decode(block, raw=True))
        # The library lets an IndexError through for a block that ends inside an integer.
        except (HPACKError, IndexError) as error:
            raise BadBlockError(type(error).__name__) from None
        if self._off:
            known.keep(block, fields)
            # The decoder has seen the peer give up its table, or it would have refused the block.
            self._stateless = True
        return fields


def request_fields(pairs: Iterable[tuple[bytes | str, bytes | str]]) -> Fields | None:
    """Return fields by name if they form a request (RFC 9113 section 8.2 and 8.3), else None.

    Repeated names are joined with a comma.
    """
    fields: dict[str, str] = {}
    for raw_name, raw_value in pairs:
        name, value = _text(raw_name), _text(raw_value)
        if name.startswith(":"):
            if name not in _PSEUDO or name in fields or not fields.keys() <= _PSEUDO:
                return None
        elif not _is_name(name) or name in _CONNECTION_SPECIFIC or (name == "te" and value != "trailers"):
            return None
        if any(mark in value for mark in "\r\n\0") or value != value.strip(" \t"):
            return None
        fields[name] = f"{fields[name]},{value}" if name in fields else value
    return fields if fields.keys() >= _REQUIRED and fields[":path"] else None


def _is_name(name: str) -> bool:
    return name != "" and name.isascii() and name.isprintable() and name == name.lower() and not {" ", ":"} & set(name)


def _text(raw: bytes | str) -> str:
    return raw if isinstance(raw, str) else raw.decode("latin-1")
