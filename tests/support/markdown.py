"""The project's Markdown pages as data: code blocks, links, and the commands in them.

A block of commands is one without a language (or `sh`) that begins with a command we know. The comment
`<!-- not run: reason -->` right above a block says that no test runs it, and why.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FOREIGN = {".venv", ".git", "node_modules", "dist", "build", ".gateway"}
_COMMANDS = (
    *("extproc", "configctl", "make", "python", "python3", "pip", "curl", "docker", "kubectl", "systemctl", "git"),
    *("export", "cat", "ls", "sleep", "source", ".", "cd", "for", "printf", "echo", ".venv/bin/python", "psql"),
    *("sudo", "mkdir", "istioctl", "systemd-sysusers"),
)
_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: ((?:(?!-->).)+) -->\s*\Z", re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HERE_DOCUMENT = re.compile(r"<<'?(\w+)'?\n.*?^\1$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """One code block; `not_run` is the reason why no test runs it."""

    page: str
    line: int
    language: str
    text: str
    not_run: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_commands(self) -> bool:
        """Whether a reader would type it into a shell."""
        words = next((line.split() for line in self.text.splitlines() if line.strip() and line[0] != "#"), [])
        return self.language in ("", "sh", "bash", "console") and bool(words) and words[0] in _COMMANDS

    def commands(self) -> Iterator[list[str]]:
        """Yield the words of each command, here-documents and redirections left out."""
        text = _HERE_DOCUMENT.sub("", self.text).replace("\\\n", " ")
        for line in text.splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>()")
            lexer.wordchars += "{}$:=,@%*?[]!"
            words: list[str] = []
            for word in (*lexer, ";"):
                if set(word) <= set(";&|<>()"):
                    if words:
                        yield words
                    words = [] if word[0] in ";&|(" else [">"]
                else:
                    words.append(word)


@cache
def pages() -> tuple[Path, ...]:
    """Return every Markdown page of the project."""
    found: list[Path] = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = set(folders) - _FOREIGN
        found += (Path(folder, name) for name in files if name.endswith(".md"))
    return tuple(sorted(found))


def blocks(page: Path) -> list[Block]:
    """Return the code blocks of a page."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        reason = _NOT_RUN.search(text[: match.start()])
        line = text.count("\n", 0, match.start()) + 1
        name = page.relative_to(ROOT).as_posix()
        found.append(Block(name, line, match[2], match[3], reason[1] if reason else None))
    return found


def run_pages() -> list[Path]:
    """Return the pages of docs/ that tests/e2e/test_docs.py runs: those that no other test owns."""
    return [
        page
        for page in pages()
        if page.parent == ROOT / "docs"
        and f"docs/{page.name}" not in owned_pages()
        and any(block.is_commands and block.not_run is None for block in blocks(page))
    ]


@cache
def owned_pages() -> set[str]:
    """Return the pages that an end-to-end test of their own names in its first line."""
    tests = (ROOT / "tests" / "e2e").glob("test_*.py")
    heads = [path.read_text(encoding="utf-8").partition("\n")[0] for path in tests]
    return {name for head in heads for name in re.findall(r"docs/[a-z-]+\.md|README\.md", head)}


def links(page: Path) -> list[str]:
    """Return what a page links to, code left out."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return _LINK.findall(re.sub(r"`[^`]*`", "", text))
