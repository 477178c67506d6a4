"""`extproc render`: the Envoy files of a config, for an Envoy somebody else runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from extproc.data_dir import DataDir
from extproc.envoy_config.files import write_json, write_resources
from extproc.envoy_config.named_files import why_unusable
from extproc.envoy_config.render import render
from extproc.envoy_config.resource import EnvoyPaths, Listen
from extproc.preflight import load_snapshot, refuse_open_door
from extproc.settings import Address, RenderSettings, StartError

CA_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


def envoy_paths(data_dir: DataDir, environ: Mapping[str, str]) -> EnvoyPaths:
    """Return where Envoy finds everything in a data directory."""
    return EnvoyPaths(
        cds=data_dir.cds,
        rds=data_dir.rds,
        lds=data_dir.lds,
        sds=data_dir.sds,
        access_log=data_dir.access_log,
        admin_socket=data_dir.envoy_admin_socket,
        checks_socket=data_dir.checks_socket,
        extproc=str(data_dir.extproc_socket),
        logs=str(data_dir.logs_socket),
        ca_file=find_ca_file(environ),
    )


def find_ca_file(environ: Mapping[str, str]) -> Path:
    """Return the system's certificate authorities: SSL_CERT_FILE, else the first usual place that exists."""
    named = environ.get("SSL_CERT_FILE")
    return Path(named) if named else next((Path(p) for p in CA_FILES if Path(p).is_file()), Path(CA_FILES[0]))


def listen_of(address: Address) -> Listen:
    """Return a front address in Envoy's terms."""
    return Listen(address.host, address.port)


def run_render(settings: RenderSettings) -> int:
    """Write the files under `settings.out`; returns the exit code, raises ConfigErrors or StartError."""
    snapshot = load_snapshot(settings.config)
    refuse_open_door(snapshot, (settings.listen,))
    out = settings.out.absolute()
    data_dir = DataDir(settings.data_dir)
    paths = EnvoyPaths(
        cds=out / "cds.json",
        rds=out / "rds.json",
        lds=out / "lds.json",
        sds=out / "sds",
        access_log=data_dir.access_log,
        admin_socket=data_dir.envoy_admin_socket,
        checks_socket=data_dir.checks_socket,
        extproc=str(data_dir.extproc_socket),
        logs=str(data_dir.logs_socket),
        ca_file=find_ca_file(settings.environ),
    )
    try:
        rendered = render(snapshot, listen_of(settings.listen), paths, settings.environ)
    except OSError as error:
        raise StartError(f"Cannot use server.tls: {error.filename} {why_unusable(error)}.") from None
    try:
        paths.sds.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_resources(rendered, paths, "1")
        write_json(out / "bootstrap.json", rendered.bootstrap)
    except OSError as error:
        raise StartError(f"Cannot write to {out}: {error.strerror}. Choose another --out.") from None
    for provider, fault in sorted(rendered.missing_keys.items()):
        key = snapshot.providers[provider].api_key
        where = f"{key.name} {fault}" if key else fault
        sys.stderr.write(f"note: provider {provider} has no key, {where}; a placeholder was written.\n")
    return 0
