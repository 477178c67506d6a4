"""What the files of a folder hold while a gateway writes them: it writes beside each and renames, at any moment."""

from __future__ import annotations

from pathlib import Path


def files_with(root: Path, needle: str) -> list[Path]:
    """Return the files below a folder that hold a text."""
    return [path for path in root.rglob("*") if path.is_file() and needle.encode() in bytes_of(path)]


def bytes_of(path: Path) -> bytes:
    """Return what is in a file; nothing of a half-written one that got its real name since it was listed."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        assert ".tmp" == path.suffix
        return b""
