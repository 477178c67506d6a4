"""The packages, as a stranger gets them: built by `make dist`, installed in an empty environment, run elsewhere."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest

from extproc import __version__

pytestmark = pytest.mark.packages

ROOT = Path(__file__).resolve().parents[2]
_LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", ".gateway", ".*_cache", ".hypothesis", "*.egg-info", "dist", "build"
)
_BUILD_TIMEOUT_S = 300.0
_PIP: list[str | Path] = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run `make dist` in a copy of the sources, with the environment of the tests; returns the folder it fills."""
    copy = tmp_path_factory.mktemp("sources") / "gateway"
    shutil.copytree(ROOT, copy, ignore=_LEFT_OUT)
    installed = f"{sys.prefix}/.installed"
    command = ["make", "dist", f"VENV={sys.prefix}", "-o", installed]
    subprocess.run(command, cwd=copy, check=True, capture_output=True, timeout=_BUILD_TIMEOUT_S)
    return copy / "dist"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Download what the runtime lock pins; returns the folder, from which each installation here takes its packages."""
    folder = tmp_path_factory.mktemp("locked")
    command = [*_PIP, "download", "-q", "--no-deps", "--require-hashes", "-r", ROOT / "requirements-runtime.lock"]
    subprocess.run([*command, "-d", folder], check=True, capture_output=True, timeout=_BUILD_TIMEOUT_S)
    return folder


@pytest.fixture(scope="module")
def installed(dist: Path, locked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel with its dependencies in an empty environment, by the pip of this one; returns its commands."""
    home = tmp_path_factory.mktemp("home") / "venv"
    venv.create(home)
    command = [*_PIP, "--python", home / "bin/python", "install", "-q", "--no-compile", _wheel(dist)]
    subprocess.run(command, check=True, capture_output=True, timeout=_BUILD_TIMEOUT_S, env=_only_from(locked))
    return home / "bin"


def test_both_packages_carry_the_one_version_and_their_digests(dist: Path) -> None:
    names = [
        f"ai_model_gateway-{__version__}-py3-none-any.whl",
        f"ai_model_gateway-{__version__}.tar.gz",
        "sbom.cdx.json",
    ]

    assert {*names, "SHA256SUMS"} == {path.name for path in dist.iterdir()}
    sums = {name: digest for digest, name in map(str.split, (dist / "SHA256SUMS").read_text().splitlines())}
    assert {name: hashlib.sha256((dist / name).read_bytes()).hexdigest() for name in names} == sums


def test_the_source_distribution_holds_what_the_repository_holds(dist: Path) -> None:
    """Documentation, examples, tests and the files to run it are in it, so that it can be tested as it is."""
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}

    wanted = {
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "Makefile",
        "requirements.lock",
        "requirements-runtime.lock",
        "docker-compose.yml",
        "Dockerfile",
    }
    wanted |= {"docs/envoy.md", "examples/gateway.yaml", "tests/support/wall.py", "protos/README.md", ".ci/run"}
    assert set() == wanted - held


def test_the_wheel_alone_plays_the_demonstration(installed: Path, tmp_path: Path) -> None:
    """Outside the repository, in an environment that has nothing but the wheel and what it asks for."""
    done = _run(tmp_path, installed / "extproc", "demo")

    assert (0, "") == (done.returncode, done.stderr)
    assert "claims held." in done.stdout


@pytest.mark.parametrize("command", ["extproc", "configctl"])
def test_the_installed_commands_explain_themselves(installed: Path, tmp_path: Path, command: str) -> None:
    helped = _run(tmp_path, installed / command, "--help")
    version = _run(tmp_path, installed / command, "--version")

    assert (0, 0) == (helped.returncode, version.returncode)
    assert "example" in helped.stdout.lower()
    assert __version__ in version.stdout


def test_the_commands_of_the_image_install_the_gateway(locked: Path, tmp_path: Path) -> None:
    """The Dockerfile's own lines, in a folder that holds what it copies: digests alone decide what comes in."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    copied = " ".join(re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)).split()
    for name in copied:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    build = next(line for line in text.splitlines() if "pip install" in line).removeprefix("RUN ")
    script = build.replace("/opt/gateway", str(tmp_path / "venv")).replace(
        "python -m venv", f"{sys.executable} -m venv"
    )

    # Bytecode is not what is tested, and compiling all of it takes longer than the rest.
    environ = _only_from(locked) | {"PIP_COMPILE": "0"}
    subprocess.run(
        ["sh", "-ec", script], cwd=tmp_path, check=True, capture_output=True, timeout=_BUILD_TIMEOUT_S, env=environ
    )

    version = _run(tmp_path, tmp_path / "venv/bin/extproc", "--version")
    driver = _run(tmp_path, tmp_path / "venv/bin/python", "-c", "import psycopg")
    assert (0, 0) == (version.returncode, driver.returncode)
    assert __version__ in version.stdout


def _only_from(folder: Path) -> dict[str, str]:
    """Return an environment whose pip asks no index: what the lock lacks is missing, and indexes are read only once."""
    return os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}


def _wheel(dist: Path) -> Path:
    return next(dist.glob("*.whl"))


def _run(folder: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    environ = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    path = f"{Path(command[0]).parent}:/usr/bin:/bin"
    return subprocess.run(
        command, cwd=folder, env=environ | {"PATH": path}, capture_output=True, text=True, timeout=120.0
    )
