"""gRPC's framing inside a stream: a flag, a length, a message; pieces in, whole messages out."""

from __future__ import annotations

from extproc.transport.frames import GrpcStatus

PREFIX_BYTES = 5


class RefusedError(Exception):
    """The peer's stream cannot go on; `status` and `sentence` are what it is told."""

    def __init__(self, status: GrpcStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


class Messages:
    """The messages of one stream, at most `limit_bytes` each; `encoding` is what its headers announced."""

    __slots__ = ("_encoding", "_limit_bytes", "_pieces", "_size", "_wanted")

    def __init__(self, limit_bytes: int, encoding: str) -> None:
        self._limit_bytes = limit_bytes
        self._encoding = encoding
        self._pieces: list[bytes] = []
        self._size = 0
        self._wanted = PREFIX_BYTES

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the messages that are whole now; raises RefusedError."""
        if not self._pieces and len(chunk) >= PREFIX_BYTES:
            size = self._size_of(chunk)
            if len(chunk) == size:
                return [chunk[PREFIX_BYTES:]]
        if not chunk:
            return []
        self._pieces.append(chunk)
        self._size += len(chunk)
        return self._cut() if self._size >= self._wanted else []

    def finish(self) -> None:
        """Take note that nothing follows; raises RefusedError when that is amid a message."""
        if self._pieces:
            raise RefusedError(GrpcStatus.INTERNAL, "The stream ended amid a message.")

    def _cut(self) -> list[bytes]:
        data = b"".join(self._pieces) if len(self._pieces) > 1 else self._pieces[0]
        messages, position = [], 0
        self._wanted = PREFIX_BYTES
        while len(data) - position >= PREFIX_BYTES:
            self._wanted = self._size_of(data, position)
            if len(data) - position < self._wanted:
                break
            messages.append(data[position + PREFIX_BYTES : position + self._wanted])
            position += self._wanted
            self._wanted = PREFIX_BYTES
        rest = data[position:] if position else data
        self._pieces = [rest] if rest else []
        self._size = len(rest)
        return messages

    def _size_of(self, data: bytes, start: int = 0) -> int:
        """Return the bytes that the message at `start` takes, its prefix included."""
        if data[start]:
            raise self._compressed(data[start])
        size = int.from_bytes(data[start + 1 : start + PREFIX_BYTES], "big")
        if size > self._limit_bytes:
            raise RefusedError(GrpcStatus.RESOURCE_EXHAUSTED, f"A message is larger than {self._limit_bytes} bytes.")
        return size + PREFIX_BYTES

    def _compressed(self, flag: int) -> RefusedError:
        if flag == 1 and self._encoding != "identity":
            return RefusedError(GrpcStatus.UNIMPLEMENTED, "Compressed messages are not supported.")
        return RefusedError(GrpcStatus.INTERNAL, "A message has a compression flag that its stream did not announce.")


def framed(message: bytes) -> bytes:
    """Return a message with its prefix."""
    return b"\x00" + len(message).to_bytes(4, "big") + message
