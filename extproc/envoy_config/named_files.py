"""Reads the files that a config names: keys, certificates, authorities.

Owns what such a file must be, a regular one of bounded size, and the words for one that cannot be used. A path is the
operator's to choose, so it may lead to a pipe that nobody writes or to a device that never ends; neither may hang the
reader or fill its memory. Invariant: no sentence holds anything that a file holds.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from extproc.config.errors import ConfigError, ConfigErrors, format_path
from extproc.config.snapshot import Snapshot

FILE_LIMIT_BYTES = 64 * 1024
AUTHORITIES_LIMIT_BYTES = 4 * 1024 * 1024
"""A system's whole bundle of authorities has hundreds of KiB."""


class NotOrdinaryError(OSError):
    """A file that is there and is not one that can be read whole; `strerror` says what it is."""


def read_named_file(path: str, limit_bytes: int = FILE_LIMIT_BYTES) -> bytes:
    """Return what a regular file holds; raises OSError, NotOrdinaryError for one that is none or is too large."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise _not_regular(path) from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _not_regular(path)
        content = b""
        while part := os.read(descriptor, limit_bytes + 1 - len(content)):
            content += part
    finally:
        os.close(descriptor)
    if len(content) > limit_bytes:
        raise NotOrdinaryError(errno.EFBIG, f"larger than {limit_bytes // 1024} KiB", path)
    return content


def why_unusable(error: OSError) -> str:
    """Return what is wrong with a file, to stand behind its name: `is not there`."""
    if isinstance(error, FileNotFoundError):
        return "is not there"
    if isinstance(error, NotOrdinaryError):
        return f"is {error.strerror}"
    return f"cannot be read ({error.strerror or type(error).__name__})"


def check_provider_tls(snapshot: Snapshot) -> None:
    """Refuse a version whose TLS files would hang Envoy or fill its memory; raises ConfigErrors.

    One that is not there, or not for us to read, is left to Envoy: it may run where the file is.
    """
    faults = list(_tls_faults(snapshot))
    if faults:
        raise ConfigErrors(faults)


def _tls_faults(snapshot: Snapshot) -> Iterator[ConfigError]:
    for provider in snapshot.providers.values():
        tls = provider.tls
        for key, path, limit_bytes in (
            ("ca_file", tls.ca_file, AUTHORITIES_LIMIT_BYTES),
            ("client_cert_file", tls.client_cert_file, FILE_LIMIT_BYTES),
            ("client_key_file", tls.client_key_file, FILE_LIMIT_BYTES),
        ):
            try:
                if path is not None:
                    read_named_file(path, limit_bytes)
            except NotOrdinaryError as error:
                reason = f"{path} {why_unusable(error)}; name a file in PEM form"
                yield ConfigError(format_path(("providers", provider.name, "tls", key)), None, reason)
            except OSError:
                continue


def _not_regular(path: str) -> NotOrdinaryError:
    return NotOrdinaryError(errno.EINVAL, "not a regular file", path)
