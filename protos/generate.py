"""Generate extproc/wire/pb from the .proto files beside this script.

Owns the one protoc call of this repository: `generate.py` writes the modules and their type stubs, and
`generate.py --check` only says whether those already there are what protoc would write. What is generated
depends on nothing but the .proto files and the version of grpcio-tools.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped]  # ships no types

PROTOS = Path(__file__).resolve().parent
REPOSITORY = PROTOS.parent
PACKAGE = Path("extproc", "wire", "pb")
OWN = PROTOS / "gateway" / "v1"
"""Our own API: its package is `gateway.v1`, its Python lives with the rest."""
PATTERN = "*_pb2.py*"


def generate(into: Path) -> None:
    """Write `extproc/wire/pb/*_pb2.py` and `.pyi` below the directory `into`, which must exist."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / PACKAGE).glob("*.proto"))
    sources += sorted(str(PACKAGE / path.name) for path in OWN.glob("*.proto"))
    well_known = files("grpc_tools") / "_proto"
    arguments = [
        "protoc",
        f"-I{PROTOS}",
        f"-I{PACKAGE}={OWN}",
        f"-I{well_known}",
        f"--python_out={into}",
        f"--pyi_out={into}",
        *sources,
    ]
    if protoc.main(arguments) != 0:
        sys.exit("protoc failed; its own message is above")


def differences(checked_in: Path, fresh: Path) -> list[str]:
    """Name the generated files that are missing, left over or different below `checked_in`, sorted."""
    old, new = _contents(checked_in), _contents(fresh)
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def main(argv: list[str] | None = None) -> None:
    """Generate, or check and exit with status 1 when something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if the code is out of date")
    parser.add_argument(
        "--root",
        type=Path,
        default=REPOSITORY,
        help="directory that holds extproc/ (default: this repository)",
    )
    options = parser.parse_args(argv)
    if not options.check:
        _remove_generated(options.root)
        generate(options.root)
        return
    with tempfile.TemporaryDirectory() as fresh:
        generate(Path(fresh))
        stale = differences(options.root, Path(fresh))
    if stale:
        compiler = f"grpcio-tools {version('grpcio-tools')}"
        sys.exit(f"not what {compiler} generates: {', '.join(stale)}; run: python protos/generate.py")


def _contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / PACKAGE).glob(PATTERN)}


def _remove_generated(root: Path) -> None:
    for path in (root / PACKAGE).glob(PATTERN):
        path.unlink()


if __name__ == "__main__":
    main()
