from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from extproc.data_dir import MAX_SOCKET_PATH_BYTES, DataDir
from extproc.settings import StartError


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_every_directory_that_is_made_is_private(tmp_path: Path) -> None:
    """All of them, whatever the umask: the root, and every one below."""
    data_dir = DataDir(tmp_path / "new" / "gateway")

    before = os.umask(0)
    try:
        data_dir.create()
    finally:
        os.umask(before)

    made = [path for path in data_dir.root.rglob("*") if path.is_dir()]
    assert {data_dir.run, data_dir.envoy, data_dir.sds, data_dir.logs} == set(made)
    assert {0o700} == {mode_of(path) for path in (data_dir.root, *made)}


def test_an_existing_open_key_directory_is_closed(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path)
    data_dir.sds.mkdir(parents=True)
    data_dir.sds.chmod(0o755)

    data_dir.create()

    assert mode_of(data_dir.sds) == 0o700


def test_an_existing_root_keeps_its_mode(tmp_path: Path) -> None:
    """The root may be a shared directory that the operator named."""
    tmp_path.chmod(0o755)

    DataDir(tmp_path).create()

    assert mode_of(tmp_path) == 0o755


def test_creating_twice_is_harmless(tmp_path: Path) -> None:
    DataDir(tmp_path).create()

    DataDir(tmp_path).create()

    assert DataDir(tmp_path).logs.is_dir()


def test_a_relative_root_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert DataDir(Path("here")).bootstrap == tmp_path / "here" / "envoy" / "bootstrap.json"


def test_a_root_that_cannot_be_written_is_refused_with_a_sentence(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a directory")

    with pytest.raises(StartError, match=r"data directory .*file cannot be used: .*--data-dir"):
        DataDir(in_the_way).create()


def test_a_directory_that_the_system_forbids_is_refused(tmp_path: Path) -> None:
    """A lock file that cannot be opened stands for a read-only disk, which root can meet too."""
    data_dir = DataDir(tmp_path)
    data_dir.lock.mkdir(parents=True)

    with pytest.raises(StartError, match=r"cannot be used: .*lock: Is a directory"):
        data_dir.create()


def test_a_root_too_long_for_sockets_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    root = tmp_path / ("d" * MAX_SOCKET_PATH_BYTES)

    with pytest.raises(StartError, match=r"envoy-admin\.sock has \d+ bytes .* allows 107: .*--data-dir"):
        DataDir(root).create()

    assert not root.exists()


def test_the_longest_allowed_socket_path_is_accepted(tmp_path: Path) -> None:
    used = len(os.fsencode(DataDir(tmp_path / "x").envoy_admin_socket)) - 1
    data_dir = DataDir(tmp_path / ("d" * (MAX_SOCKET_PATH_BYTES - used)))

    data_dir.create()

    assert len(os.fsencode(data_dir.envoy_admin_socket)) == MAX_SOCKET_PATH_BYTES


def test_a_second_holder_is_told_the_pid_of_the_first(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path)
    data_dir.create()

    with (
        data_dir.lock_exclusive(),
        pytest.raises(StartError, match=rf"\(pid {os.getpid()}\) already uses"),
        data_dir.lock_exclusive(),
    ):
        pass


def test_the_lock_is_free_again_after_its_holder_left(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path)
    data_dir.create()

    with data_dir.lock_exclusive():
        pass
    with data_dir.lock_exclusive():
        pass


def test_children_do_not_inherit_the_lock(tmp_path: Path) -> None:
    """A child that outlives a killed supervisor must not keep the directory locked."""
    data_dir = DataDir(tmp_path)
    data_dir.create()

    with data_dir.lock_exclusive():
        child = subprocess.Popen(
            [sys.executable, "-S", "-c", "print('up', flush=True); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            close_fds=False,
        )
        assert child.stdout is not None
        child.stdout.readline()
    try:
        with data_dir.lock_exclusive():
            pass
    finally:
        child.communicate(b"\n")
