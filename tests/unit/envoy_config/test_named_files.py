"""A file that a config names may be anything; only an ordinary one of bounded size is read."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from extproc.config.errors import ConfigErrors
from extproc.envoy_config.named_files import FILE_LIMIT_BYTES, NotOrdinaryError, read_named_file, why_unusable
from tests.unit.config.build import edited
from tests.unit.envoy_config.build import ORDINARY, TLS_FILES, rendered


def _link_to_a_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


NOT_REGULAR: dict[str, Callable[[Path], object]] = {
    "a pipe that nobody writes": os.mkfifo,
    "a link to one": _link_to_a_pipe,
    "a device that never ends": lambda path: path.symlink_to("/dev/zero"),
    "a directory": lambda path: path.mkdir(),
    "a socket": _socket,
}


def why_not(path: Path) -> str:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - its words are the claim
        read_named_file(str(path))
    return why_unusable(caught.value)


class TestReadingANamedFile:
    def test_gives_what_it_holds_through_links_and_to_the_last_byte_allowed(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"x" * FILE_LIMIT_BYTES)
        (tmp_path / "link").symlink_to("file")
        assert b"x" * FILE_LIMIT_BYTES == read_named_file(str(tmp_path / "link"))

    @pytest.mark.parametrize("make", NOT_REGULAR.values(), ids=NOT_REGULAR)
    def test_that_is_none_is_refused_at_once(self, make: Callable[[Path], object], tmp_path: Path) -> None:
        make(tmp_path / "it")
        assert "is not a regular file" == why_not(tmp_path / "it")

    def test_that_is_too_large_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"x" * (FILE_LIMIT_BYTES + 1))
        assert "is larger than 64 KiB" == why_not(tmp_path / "file")

    def test_that_is_missing_is_not_there(self, tmp_path: Path) -> None:
        assert "is not there" == why_not(tmp_path / "file")

    def test_that_the_system_refuses_is_told_in_its_words(self, tmp_path: Path) -> None:
        (tmp_path / "loop").symlink_to("loop")
        assert "cannot be read (Too many levels of symbolic links)" == why_not(tmp_path / "loop")


class TestTheTlsFilesOfAProvider:
    @staticmethod
    def with_tls(**files: object) -> object:
        return rendered(
            edited(ORDINARY, ("providers", "openai", "tls"), {key: str(path) for key, path in files.items()})
        )

    @pytest.mark.parametrize("key", ["ca_file", "client_cert_file", "client_key_file"])
    def test_that_would_hang_envoy_are_refused_by_their_key(self, key: str, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        files = {"client_cert_file": TLS_FILES / "server.crt", "client_key_file": TLS_FILES / "server.key"}
        expected = f"providers.openai.tls.{key}: {tmp_path}/pipe is not a regular file; name a file in PEM form"
        with pytest.raises(ConfigErrors) as caught:
            self.with_tls(**files | {key: tmp_path / "pipe"})
        assert expected == str(caught.value)

    def test_that_are_not_here_are_left_to_envoy_which_may_run_where_they_are(self, tmp_path: Path) -> None:
        assert self.with_tls(ca_file=tmp_path / "none")

    def test_may_be_a_whole_system_s_bundle_of_authorities(self, tmp_path: Path) -> None:
        (tmp_path / "bundle").write_bytes(b"#" * 10 * FILE_LIMIT_BYTES)
        assert self.with_tls(ca_file=tmp_path / "bundle")


def test_a_front_certificate_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    files = {"cert_file": str(tmp_path / "pipe"), "key_file": str(TLS_FILES / "server.key")}
    with pytest.raises(NotOrdinaryError):
        rendered(edited(ORDINARY, ("server", "tls"), files))
