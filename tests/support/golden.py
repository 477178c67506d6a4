"""The golden Envoy configuration: what `examples/gateway.yaml` becomes, for people to read and for a test to compare.

`python -m tests.support.golden` writes `envoy/golden/` anew; `--check` only says whether it is what would be written.
Holds no key: every reference leads nowhere here, so the secrets are placeholders.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import orjson

from extproc.config.compile import compile_snapshot
from extproc.config.load import parse_config_file
from extproc.data_dir import DataDir
from extproc.envoy_config.render import discovery, render
from extproc.envoy_config.resource import EnvoyPaths, Json, Listen
from extproc.render import envoy_paths

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "examples" / "gateway.yaml"
GOLDEN = REPOSITORY / "envoy" / "golden"
DATA_DIR = "/var/lib/gateway"
CA_FILE = "/etc/ssl/certs/ca-certificates.crt"
LISTEN = Listen("127.0.0.1", 18080)


def golden_paths() -> EnvoyPaths:
    """Return where everything of the golden configuration lies."""
    return envoy_paths(DataDir(Path(DATA_DIR)), {"SSL_CERT_FILE": CA_FILE})


def golden_documents() -> dict[str, Json]:
    """Render the example; file name below `envoy/golden/` -> document."""
    rendered = render(compile_snapshot(parse_config_file(EXAMPLE), version=1), LISTEN, golden_paths(), {})
    return {
        "bootstrap.json": rendered.bootstrap,
        "cds.json": discovery("1", rendered.cds),
        "rds.json": discovery("1", [rendered.rds]),
        "lds.json": discovery("1", rendered.lds),
        **{f"sds/{name}": document for name, document in rendered.sds.items()},
    }


def golden_files() -> dict[str, str]:
    """Return the files as text: as the gateway writes them, and a last line that ends."""
    option = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
    return {name: orjson.dumps(document, option=option).decode() for name, document in golden_documents().items()}


def files_there() -> dict[str, str]:
    """Return the files as they are checked in."""
    found = sorted(path for path in GOLDEN.rglob("*") if path.is_file())
    return {path.relative_to(GOLDEN).as_posix(): path.read_text(encoding="utf-8") for path in found}


def write_golden() -> None:
    """Replace `envoy/golden/`."""
    wanted = golden_files()
    for name in files_there().keys() - wanted.keys():
        (GOLDEN / name).unlink()
    for name, text in wanted.items():
        path = GOLDEN / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Write or check; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.golden", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only tell which files differ")
    if not parser.parse_args(arguments).check:
        write_golden()
        return 0
    wanted, there = golden_files(), files_there()
    stale = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
    for name in stale:
        sys.stderr.write(f"envoy/golden/{name} is not what examples/gateway.yaml renders to\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
