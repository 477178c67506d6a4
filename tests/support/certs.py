"""Certificates for tests, made with the `openssl` command: an authority, and what it signs."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.programs import needed

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc")


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, as PEM files."""

    cert: Path
    key: Path


class Authority:
    """A certificate authority in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._own = Pair(folder / "ca.pem", folder / "ca.key")
        _openssl("req", "-x509", *_KEY, *_out(self._own), "-subj", "/CN=test authority", "-days", "30")

    @property
    def cert(self) -> Path:
        """The authority's own certificate: what a verifier trusts."""
        return self._own.cert

    def sign(self, name: str, san: str = "", *, days: int = 30) -> Pair:
        """Make a certificate; `san` is in openssl's form, such as `DNS:api.example.com,IP:127.0.0.1`."""
        made = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        extra = ("-addext", f"subjectAltName={san}") if san else ()
        signed = ("-CA", str(self._own.cert), "-CAkey", str(self._own.key), "-days", str(days))
        _openssl("req", "-x509", *_KEY, *_out(made), "-subj", f"/CN={name}", *extra, *signed)
        return made


def _out(pair: Pair) -> tuple[str, ...]:
    return "-keyout", str(pair.key), "-out", str(pair.cert)


def _openssl(*arguments: str) -> None:
    subprocess.run([needed("openssl", "openssl"), *arguments], check=True, capture_output=True)
