"""`extproc doctor`: looks at everything a gateway needs on this machine and says what to do about each finding.

Owns the checks and how they are told. It changes nothing and starts nothing but `envoy --version`; only `--network`
lets it talk to providers, and then it sends no key and no prompt. Where the program has a check of its own (ports,
Envoy, config), that one is used, so that the doctor and the start agree.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import resource
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from extproc import envoy_admin
from extproc.config.errors import ConfigErrors
from extproc.config.snapshot import Provider, SecretRef, Snapshot
from extproc.data_dir import MAX_SOCKET_PATH_BYTES, DataDir
from extproc.doctor_network import Reached, reach, tls_files_fault
from extproc.envoy_binary import dotted, find_envoy, require_envoy
from extproc.envoy_config.secrets import KeyMissingError, read_key
from extproc.envoy_files import INOTIFY_LIMIT, SPARE_WATCHES
from extproc.preflight import claim_port, load_snapshot, refuse_open_door
from extproc.render import find_ca_file
from extproc.settings import Address, StartError

ENOUGH_FILES = 4096
EARLIEST_S = 1_735_689_600.0
"""2025-01-01: a clock before it makes every certificate look as if it were from the future."""
_AHEAD_S = 120.0
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class Level(StrEnum):
    """How bad a finding is; only `FAIL` keeps a gateway from working."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw, and what to do about it."""

    level: Level
    check: str
    seen: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class DoctorSettings:
    """`extproc doctor`: what to look at; `store` tells of the store, raising StartError; `now` is epoch seconds."""

    config: Path | None
    data_dir: DataDir
    listen: Address
    metrics_listen: Address
    envoy: str | None
    environ: Mapping[str, str]
    network: bool
    store: Callable[[], str]
    now: float


def run_doctor(settings: DoctorSettings) -> int:
    """Print every finding; 0 when nothing keeps the gateway from working, 1 otherwise."""
    findings = list(examine(settings))
    for finding in findings:
        sys.stdout.write(f"{finding.level:<5} {finding.check:<9} {finding.seen}\n")
        if finding.remedy:
            sys.stdout.write(f"{'':<15} do: {finding.remedy}\n")
    failed = sum(finding.level is Level.FAIL for finding in findings)
    sys.stdout.write(f"{failed} to put right.\n" if failed else "Nothing keeps the gateway from working.\n")
    return 1 if failed else 0


def examine(settings: DoctorSettings) -> Iterator[Finding]:
    """Run every check, in the order in which a start needs them."""
    yield _envoy(settings)
    snapshot, faults = _config(settings)
    yield from faults
    if snapshot is not None:
        yield from _keys(snapshot, settings.environ)
        yield from _providers(snapshot, settings.environ)
        yield from _door(snapshot, settings)
    yield from _data_dir(settings.data_dir)
    yield from _ports(settings)
    yield _store(settings)
    yield _clock(settings)
    yield from _limits(snapshot)
    if settings.network and snapshot is not None:
        yield from _network(snapshot, settings)


def _envoy(settings: DoctorSettings) -> Finding:
    try:
        path = find_envoy(settings.envoy, settings.environ)
        return Finding(Level.OK, "envoy", f"Envoy {dotted(require_envoy(path))} at {path}")
    except StartError as error:
        return Finding(Level.FAIL, "envoy", *_split(error))


def _config(settings: DoctorSettings) -> tuple[Snapshot | None, list[Finding]]:
    if settings.config is None:
        return None, [Finding(Level.WARN, "config", "no file was named", "add --config gateway.yaml to check one")]
    try:
        snapshot = load_snapshot(settings.config)
    except ConfigErrors as errors:
        remedy = "put it right, then run this again; examples/gateway.yaml shows every key"
        return None, [Finding(Level.FAIL, "config", str(error), remedy) for error in errors.errors]
    models, providers = len(snapshot.models), len(snapshot.providers)
    return snapshot, [Finding(Level.OK, "config", f"{settings.config}: {models} models, {providers} providers")]


def _keys(snapshot: Snapshot, environ: Mapping[str, str]) -> Iterator[Finding]:
    named = {provider.api_key.name for provider in snapshot.providers.values() if provider.api_key}
    for provider in snapshot.providers.values():
        reference = provider.api_key
        if reference is None:
            continue
        try:
            read_key(reference, environ)
        except KeyMissingError as fault:
            seen = f"provider {provider.name}: {reference.name} {fault}"
            yield Finding(Level.FAIL, "keys", seen, _key_remedy(reference, environ, named))


def _key_remedy(reference: SecretRef, environ: Mapping[str, str], named: set[str]) -> str:
    if reference.source == "file":
        return f"write the key, one line and nothing else, into a file {reference.name} that this user can read"
    remedy = f"export {reference.name}=..."
    free = [name for name, value in environ.items() if "KEY" in name and value.strip() and name not in named]
    close = difflib.get_close_matches(reference.name, free, 1, 0.75)
    return f"{remedy}, or name {close[0]} in the config, which is set" if close else remedy


def _providers(snapshot: Snapshot, environ: Mapping[str, str]) -> Iterator[Finding]:
    providers = list(snapshot.providers.values())
    for provider in providers:
        if provider.scheme == "http" and not _is_local(provider):
            seen = f"provider {provider.name} is asked over http: its key and every prompt travel in the clear"
            yield Finding(Level.WARN, "tls", seen, f"write https:// in the base_url of {provider.name}")
    ca_file = find_ca_file(environ)
    if not ca_file.is_file() and any(one.scheme == "https" and not one.tls.ca_file for one in providers):
        remedy = "install the system's ca-certificates, or set SSL_CERT_FILE"
        yield Finding(Level.FAIL, "tls", f"there are no certificate authorities at {ca_file}", remedy)
        providers = [one for one in providers if one.tls.ca_file]
    for fault in (tls_files_fault(provider, ca_file) for provider in providers):
        if fault is not None:
            yield _told("tls", fault)


def _network(snapshot: Snapshot, settings: DoctorSettings) -> Iterator[Finding]:
    ca_file = find_ca_file(settings.environ)
    for provider in snapshot.providers.values():
        if tls_files_fault(provider, ca_file) is None:  # which is told already
            yield _told("network", reach(provider, ca_file, settings.now))


def _told(check: str, reached: Reached) -> Finding:
    level = Level.OK if not reached.remedy else Level.WARN if reached.works else Level.FAIL
    return Finding(level, check, reached.seen, reached.remedy)


def _is_local(provider: Provider) -> bool:
    return provider.allow_private_network


def _door(snapshot: Snapshot, settings: DoctorSettings) -> Iterator[Finding]:
    try:
        refuse_open_door(snapshot, (settings.listen, settings.metrics_listen))
    except StartError as error:
        yield Finding(Level.FAIL, "clients", *_split(error))


def _data_dir(data_dir: DataDir) -> Iterator[Finding]:
    root = data_dir.root
    longest = len(os.fsencode(data_dir.envoy_admin_socket))
    if longest > MAX_SOCKET_PATH_BYTES:
        seen = f"the path of {data_dir.envoy_admin_socket} is too long for a socket ({longest} bytes)"
        yield Finding(Level.FAIL, "sockets", seen, "choose a shorter directory with --data-dir")
    at = next(path for path in (root, *root.parents) if path.exists())
    if not os.access(at, os.W_OK | os.X_OK):
        remedy = "make it writable for this user, or choose another with --data-dir"
        yield Finding(Level.FAIL, "directory", f"{at} cannot be written", remedy)
        return
    troubles = list(_loose(data_dir))
    yield from troubles
    if not troubles:
        yield Finding(Level.OK, "directory", f"{root} {'is ready' if root.exists() else 'will be made'}")


def _loose(data_dir: DataDir) -> Iterator[Finding]:
    for path in (data_dir.run, data_dir.sds, *data_dir.sds.glob("*.json"), *data_dir.run.glob("*.sock")):
        if not path.exists():
            continue
        found = path.stat()
        if found.st_uid != os.geteuid():
            seen = f"{path} belongs to user {found.st_uid}, and this is user {os.geteuid()}"
            yield Finding(
                Level.FAIL, "directory", seen, f"run as that user, or: chown -R {os.geteuid()} {data_dir.root}"
            )
        elif found.st_mode & _OTHERS:
            seen = f"{path} is open to others (mode {stat.S_IMODE(found.st_mode):04o})"
            yield Finding(Level.WARN, "directory", seen, f"chmod go= {path}")


def _ports(settings: DoctorSettings) -> Iterator[Finding]:
    if asyncio.run(envoy_admin.ready(settings.data_dir.envoy_admin_socket)):
        yield Finding(Level.OK, "ports", f"a gateway runs in {settings.data_dir.root} and has its ports")
        return
    for address, flag in ((settings.listen, "--listen"), (settings.metrics_listen, "--metrics-listen")):
        try:
            claim_port(address, flag)
        except StartError as error:
            yield Finding(Level.FAIL, "ports", *_split(error))
        else:
            yield Finding(Level.OK, "ports", f"{address} is free")


def _store(settings: DoctorSettings) -> Finding:
    try:
        return Finding(Level.OK, "store", settings.store())
    except StartError as error:
        remedy = "see that it runs and that address, user and password are right (--store, GATEWAY_STORE)"
        return Finding(Level.FAIL, "store", str(error), remedy)


def _clock(settings: DoctorSettings) -> Finding:
    remedy = "set the clock, and let NTP keep it (timedatectl set-ntp true)"
    if settings.now < EARLIEST_S:
        return Finding(Level.FAIL, "clock", "the clock is years behind: no certificate will be valid", remedy)
    written = [path.stat().st_mtime for path in (settings.data_dir.last_good, settings.data_dir.lock) if path.exists()]
    if written and max(written) > settings.now + _AHEAD_S:
        seen = f"files of an earlier run are {max(written) - settings.now:.0f} s ahead of the clock"
        return Finding(Level.WARN, "clock", f"{seen}: cooldowns last too long", remedy)
    return Finding(Level.OK, "clock", "plausible")


def _limits(snapshot: Snapshot | None) -> Iterator[Finding]:
    keys = sum(provider.api_key is not None for provider in snapshot.providers.values()) if snapshot else 0
    try:
        watches = int(INOTIFY_LIMIT.read_text())
    except (OSError, ValueError):
        watches = None
    if watches is not None and keys + SPARE_WATCHES > watches:
        seen = f"{keys} providers have keys, and {watches} inotify instances are allowed"
        remedy = f"sysctl fs.inotify.max_user_instances={2 * keys + SPARE_WATCHES}"
        yield Finding(Level.FAIL, "limits", seen, remedy)
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < ENOUGH_FILES:
        seen = f"{files} open files are allowed, and each connection is one"
        yield Finding(Level.WARN, "limits", seen, "ulimit -n 65536, or LimitNOFILE= in the systemd unit")
    else:
        yield Finding(Level.OK, "limits", "open files and inotify instances suffice")


def _split(error: StartError) -> tuple[str, str]:
    """Return what is the case, and what to do: a refusal's last sentence, or what follows its colon."""
    text = str(error)
    seen, found, remedy = text.rpartition(". ")
    if not found:
        seen, found, remedy = text.rpartition(": ")
    return (seen, remedy) if found else (text, "")
