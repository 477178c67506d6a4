"""A key is in its secret's file and nowhere else."""

from __future__ import annotations

import os
import shutil
import ssl
import stat
from pathlib import Path
from typing import Any

import orjson
import pytest

from extproc.config.snapshot import SecretRef
from extproc.envoy_config import files
from extproc.envoy_config.files import write_json, write_resources
from extproc.envoy_config.filters import secret_name
from extproc.envoy_config.secrets import PLACEHOLDER, KeyMissingError, listener_secret_name, read_key
from extproc.render import envoy_paths
from tests.support.certs import Authority
from tests.unit.config.build import edited
from tests.unit.envoy_config.build import CA_FILE, ORDINARY, TLS_FILES, find, rendered

PLANTED = "sk-planted-0123456789"


def inline(made: Any) -> list[str]:
    """Return every secret's text."""
    return [
        node["inline_string"] for document in made.sds.values() for node in find(document) if "inline_string" in node
    ]


class TestASecret:
    def test_is_the_header_s_whole_value(self) -> None:
        assert ["Bearer sk-planted-0123456789"] == inline(rendered(environ={"OPENAI_KEY": PLANTED}))

    def test_has_its_own_prefix(self) -> None:
        config = edited(ORDINARY, ("providers", "openai", "auth"), {"header": "api-key", "prefix": ""})
        assert [PLANTED] == inline(rendered(config, {"OPENAI_KEY": PLANTED}))

    def test_comes_from_a_file_as_well(self, tmp_path: Path) -> None:
        key = tmp_path / "key"
        key.write_text(f"{PLANTED}\n")
        config = edited(ORDINARY, ("providers", "openai", "api_key"), {"file": str(key)})
        assert [f"Bearer {PLANTED}"] == inline(rendered(config, {}))

    def test_is_nowhere_else_in_what_is_rendered(self) -> None:
        made = rendered(environ={"OPENAI_KEY": PLANTED})
        others = [made.bootstrap, made.cds, made.rds, made.lds, sorted(made.clusters.values()), sorted(made.sds)]
        assert PLANTED not in orjson.dumps(others).decode()

    def test_that_leads_nowhere_is_a_placeholder_and_reported(self) -> None:
        """Envoy rejects a cluster whose secret's file is missing."""
        made = rendered(environ={})
        assert ([f"Bearer {PLACEHOLDER}"], {"openai": "is not set"}) == (inline(made), made.missing_keys)

    def test_that_is_there_is_not_reported(self) -> None:
        assert {} == rendered().missing_keys

    def test_of_a_keyless_provider_does_not_exist(self) -> None:
        config = edited(ORDINARY, ("providers", "openai", "api_key"), ...)
        made = rendered(config)
        assert ({}, {}) == (dict(made.sds), made.missing_keys)

    def test_has_the_name_that_the_cluster_asks_for(self) -> None:
        made = rendered()
        ((file, document),) = made.sds.items()
        asked = {node["name"] for node in find(made.cds) if "sds_config" in node}
        assert asked == {file.removesuffix(".json")} == {document["resources"][0]["name"]}


class TestTheNameOfASecret:
    REFERENCE = SecretRef("env", "KEY")

    @pytest.mark.parametrize(
        ("reference", "prefix"),
        [(SecretRef("env", "OTHER"), "Bearer "), (SecretRef("file", "KEY"), "Bearer "), (REFERENCE, "Token ")],
    )
    def test_changes_with_the_reference(self, reference: SecretRef, prefix: str) -> None:
        assert secret_name("p", self.REFERENCE, "Bearer ") != secret_name("p", reference, prefix)

    def test_does_not_change_with_the_value(self) -> None:
        assert set(rendered(environ={"OPENAI_KEY": "a"}).sds) == set(rendered(environ={"OPENAI_KEY": "b"}).sds)


class TestTheFrontCertificate:
    @staticmethod
    def made(cert: Path, key: Path) -> Any:
        return rendered(edited(ORDINARY, ("server", "tls"), {"cert_file": str(cert), "key_file": str(key)}))

    @staticmethod
    def name_of(cert: Path, key: Path) -> str:
        return listener_secret_name(str(cert), str(key))

    def copied(self, folder: Path) -> tuple[Path, Path]:
        return tuple(Path(shutil.copy(TLS_FILES / name, folder)) for name in ("server.crt", "server.key"))  # type: ignore[return-value]

    def test_is_what_the_two_files_of_the_config_hold(self, tmp_path: Path) -> None:
        pair = Authority(tmp_path / "ca").sign("front")
        (secret,) = find([*self.made(pair.cert, pair.key).sds.values()], name=self.name_of(pair.cert, pair.key))
        expected = {
            "certificate_chain": {"inline_string": pair.cert.read_text()},
            "private_key": {"inline_string": pair.key.read_text()},
        }
        assert expected == secret["tls_certificate"]

    def test_of_other_files_is_another_secret(self, tmp_path: Path) -> None:
        """Or a version that is refused would already have replaced the certificate of the one that serves."""
        here = self.made(TLS_FILES / "server.crt", TLS_FILES / "server.key")
        there = self.made(*self.copied(tmp_path))
        assert not set(here.sds) & {name for name in there.sds if name.startswith("gateway-listener")}

    def test_of_renewed_files_is_the_same_secret(self, tmp_path: Path) -> None:
        cert, key = self.copied(tmp_path)
        before = self.made(cert, key)
        renewed = Authority(tmp_path / "ca").sign("renewed")
        shutil.copy(renewed.cert, cert)
        shutil.copy(renewed.key, key)
        after = self.made(cert, key)
        assert before.sds.keys() == after.sds.keys()
        assert before.sds != after.sds

    def test_whose_key_belongs_to_another_is_refused(self, tmp_path: Path) -> None:
        """Envoy would keep the old one and say so to nobody but its log."""
        other = Authority(tmp_path / "ca").sign("other")
        with pytest.raises(ssl.SSLError):
            self.made(TLS_FILES / "server.crt", other.key)


def fault_of(reference: SecretRef, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(KeyMissingError) as caught:
        read_key(reference, environ or {})
    return str(caught.value)


class TestReadingAKey:
    @pytest.mark.parametrize(
        ("value", "fault"),
        [
            ("", "is not set"),
            (" \n", "is not set"),
            ("two\nlines", "contains a line break inside"),
            ("nul\x00", "contains a character that no header can carry"),
            ("bell\x07", "contains a character that no header can carry"),
        ],
    )
    def test_that_cannot_be_a_header_says_why(self, value: str, fault: str) -> None:
        assert fault == fault_of(SecretRef("env", "KEY"), {"KEY": value})

    def test_drops_white_space_around_it(self) -> None:
        assert read_key(SecretRef("env", "KEY"), {"KEY": " sk-1\n"}) == "sk-1"

    @pytest.mark.parametrize(
        ("content", "fault"),
        [
            (b"\n", "is empty"),
            (b"\xff\xfe", "is not text"),
            (b"sk-1\r\nsk-2\n", "contains a line break inside"),
            (b"x" * 2_000_000, "is larger than 64 KiB"),
        ],
    )
    def test_from_a_file_that_holds_none_says_why(self, content: bytes, fault: str, tmp_path: Path) -> None:
        (tmp_path / "key").write_bytes(content)
        assert fault == fault_of(SecretRef("file", str(tmp_path / "key")))

    def test_from_a_file_that_is_missing_says_so(self, tmp_path: Path) -> None:
        assert "is not there" == fault_of(SecretRef("file", str(tmp_path / "none")))

    def test_from_a_pipe_that_nobody_writes_does_not_wait(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "key")
        assert "is not a regular file" == fault_of(SecretRef("file", str(tmp_path / "key")))


class TestTheFiles:
    @pytest.fixture
    def written(self, tmp_path: Path) -> Path:
        """Write everything below a data directory."""
        from extproc.data_dir import DataDir

        data_dir = DataDir(tmp_path / "data")
        data_dir.create()
        paths = envoy_paths(data_dir, {"SSL_CERT_FILE": CA_FILE})
        made = rendered(environ={"OPENAI_KEY": PLANTED}, paths=paths)
        write_resources(made, paths, "7")
        write_json(data_dir.bootstrap, made.bootstrap)
        return data_dir.root

    def test_are_private(self, written: Path) -> None:
        modes = {stat.S_IMODE(path.stat().st_mode) for path in (written / "envoy").rglob("*.json")}
        assert {0o600} == modes

    def test_of_secrets_alone_hold_the_key(self, written: Path) -> None:
        holding = [path for path in written.rglob("*") if path.is_file() and PLANTED.encode() in path.read_bytes()]
        assert [written / "envoy" / "sds"] == [path.parent for path in holding]

    def test_say_which_version_they_are(self, written: Path) -> None:
        versions = [orjson.loads((written / "envoy" / f"{name}.json").read_bytes()) for name in ("cds", "rds", "lds")]
        assert ["7", "7", "7"] == [document["version_info"] for document in versions]

    def test_leave_nothing_half_written(self, written: Path) -> None:
        assert [] == list(written.rglob("*.tmp"))

    def test_are_written_before_what_refers_to_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        order: list[str] = []
        monkeypatch.setattr(files, "write_json", lambda path, document: order.append(path.parent.name or path.name))
        made = rendered()
        paths = envoy_paths_at(Path("/data"))
        write_resources(made, paths, "1")
        assert ["sds", "envoy", "envoy", "envoy"] == order


def envoy_paths_at(root: Path) -> Any:
    """Return the paths of a data directory."""
    from extproc.data_dir import DataDir

    return envoy_paths(DataDir(root), {"SSL_CERT_FILE": CA_FILE})


class TestWritingAFile:
    def test_replaces_it_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "cds.json"
        write_json(path, {"a": 1})
        held = path.open("rb")
        write_json(path, {"b": "x" * 100_000})
        with held:
            assert {"a": 1} == orjson.loads(held.read())
        assert {"b"} == orjson.loads(path.read_bytes()).keys()

    def test_that_fails_leaves_the_old_one(self, tmp_path: Path) -> None:
        path = tmp_path / "cds.json"
        write_json(path, {"a": 1})
        with pytest.raises(TypeError):
            write_json(path, {"a": object()})
        assert {"a": 1} == orjson.loads(path.read_bytes())

    def test_makes_a_public_one_private(self, tmp_path: Path) -> None:
        path = tmp_path / "cds.json"
        path.touch(mode=0o644)
        write_json(path, {})
        assert 0o600 == stat.S_IMODE(path.stat().st_mode)

    def test_is_the_same_text_for_the_same_content(self, tmp_path: Path) -> None:
        """Whatever the order of its keys."""
        write_json(tmp_path / "one", {"a": 1, "b": 2})
        write_json(tmp_path / "two", {"b": 2, "a": 1})
        assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
