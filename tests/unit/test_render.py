"""`extproc render` opens no door that `extproc up` would not open."""

from __future__ import annotations

from pathlib import Path

import pytest

from extproc.render import run_render
from extproc.settings import Address, RenderSettings, StartError

ANYWHERE = Address("0.0.0.0", 18080)  # noqa: S104 - what is refused
CONFIG = """\
schema: 1
providers: {p: {base_url: 'https://api.example.com/v1'}}
models: {m: {targets: [{provider: p, model: m}]}}
"""
CLIENTS = f"clients: [{{name: a, token_sha256: '{'0' * 64}'}}]\n"


def asked(tmp_path: Path, config: str, listen: Address) -> RenderSettings:
    """Ask for the files of a config."""
    file = tmp_path / "gateway.yaml"
    file.write_text(config)
    metrics = Address("127.0.0.1", 18082)
    return RenderSettings(file, tmp_path / "out", tmp_path / "data", listen, metrics, {})


def test_a_public_address_without_clients_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"Refusing to listen on 0\.0\.0\.0:18080: .* Add a clients section"):
        run_render(asked(tmp_path, CONFIG, ANYWHERE))

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "listen"),
    [(CONFIG, Address("127.0.0.1", 18080)), (CONFIG + CLIENTS, ANYWHERE)],
    ids=["loopback", "clients"],
)
def test_any_other_is_rendered(tmp_path: Path, config: str, listen: Address) -> None:
    assert 0 == run_render(asked(tmp_path, config, listen))
    assert (tmp_path / "out" / "bootstrap.json").is_file()
