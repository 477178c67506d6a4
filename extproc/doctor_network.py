"""Whether a provider can be reached from here: the files of its TLS, its name, its port, its certificate.

Owns what is looked at and the words for it. No key and no prompt is sent: over https a handshake and nothing else, over
http one `HEAD /`, because only an answer tells whether the port speaks it. The files are looked at before anything is
sent, so that a slip in them is never taken for a fault of the provider.
"""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import NamedTuple

from extproc.config.snapshot import Provider
from extproc.envoy_config.named_files import AUTHORITIES_LIMIT_BYTES, read_named_file, why_unusable

TIMEOUT_S = 5.0
_SOON_S = 14 * 86_400.0
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNKNOWN_PROTOCOL"})
"""OpenSSL's reasons for an answer that is no TLS at all."""
# https://docs.openssl.org/3.0/man3/X509_STORE_CTX_get_error/
_CERT_NOT_YET_VALID, _CERT_HAS_EXPIRED, _HOSTNAME_MISMATCH, _IP_MISMATCH = 9, 10, 62, 64


class Reached(NamedTuple):
    """What was seen, and what to do about it; `works` when requests get through all the same."""

    seen: str
    remedy: str = ""
    works: bool = False


def tls_files_fault(provider: Provider, ca_file: Path) -> Reached | None:
    """Return what is wrong with the files that a provider's TLS names; nothing is connected to."""
    if provider.scheme == "http":
        return None
    made = _context(provider, ca_file)
    return None if isinstance(made, ssl.SSLContext) else made


def reach(provider: Provider, ca_file: Path, now: float) -> Reached:
    """Connect to a provider; `ca_file` holds the authorities that the gateway trusts where a provider names none."""
    where = _where(provider)
    try:
        if provider.scheme == "http":
            return _reach_plain(where, provider)
        context = _context(provider, ca_file)
        return context if isinstance(context, Reached) else _reach_tls(where, provider, context, now)
    except socket.gaierror:
        return Reached(f"{where}: the name is not known", "look for a slip in base_url, and see that DNS works here")
    except ssl.SSLCertVerificationError as error:
        return _not_trusted(where, error)
    except ssl.SSLError as error:
        return _no_handshake(where, error)
    except TimeoutError:
        return Reached(f"{where}: no answer within {TIMEOUT_S:g} s", "see whether a firewall or a proxy is between")
    except OSError as error:
        seen = f"{where}: {error.strerror or 'no connection'}"
        return Reached(seen, "see whether it runs and whether port and host are right")


def _where(provider: Provider) -> str:
    return f"provider {provider.name} ({provider.host}:{provider.port})"


def _context(provider: Provider, ca_file: Path) -> ssl.SSLContext | Reached:
    """Return what connects as Envoy would, or what is wrong with the files that it is made of."""
    trusted = provider.tls.ca_file or str(ca_file)
    name = f"provider {provider.name}"
    try:
        read_named_file(trusted, AUTHORITIES_LIMIT_BYTES)
        context = ssl.create_default_context(cafile=trusted)
    except ssl.SSLError:
        remedy = "put the authority's certificate there in PEM form"
        return Reached(f"{name}: the authorities' file {trusted} holds no certificate", remedy)
    except OSError as error:
        remedy = "correct tls.ca_file, or let this user read the file"
        return Reached(f"{name}: the authorities' file {trusted} {why_unusable(error)}", remedy)
    if provider.tls.client_cert_file is None:
        return context
    return _with_client_certificate(context, name, provider.tls.client_cert_file, provider.tls.client_key_file)


def _with_client_certificate(
    context: ssl.SSLContext, name: str, cert_file: str, key_file: str | None
) -> ssl.SSLContext | Reached:
    for path in (cert_file, key_file or cert_file):
        try:
            read_named_file(path)
        except OSError as error:
            remedy = "correct tls.client_cert_file and tls.client_key_file, or let this user read them"
            return Reached(f"{name}: {path} {why_unusable(error)}", remedy)
    try:
        context.load_cert_chain(cert_file, key_file, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            seen = f"{name}: the key in {key_file} is not that of the certificate in {cert_file}"
            return Reached(seen, "name the two that belong together in tls.client_cert_file and tls.client_key_file")
        seen = f"{name}: {cert_file} and {key_file} are no certificate and key ({_reason(error)})"
        return Reached(seen, "write both in PEM form, the key without a password")
    return context


def _no_password() -> str:
    """Answer for a key that is encrypted, at which Envoy fails too: OpenSSL would ask on the terminal."""
    return ""


def _reach_tls(where: str, provider: Provider, context: ssl.SSLContext, now: float) -> Reached:
    with (
        socket.create_connection((provider.host, provider.port), TIMEOUT_S) as connection,
        context.wrap_socket(connection, server_hostname=provider.host) as tls,
    ):
        return _certificate(where, tls, now)


def _certificate(where: str, tls: ssl.SSLSocket, now: float) -> Reached:
    ends = (tls.getpeercert() or {}).get("notAfter")
    left_s = ssl.cert_time_to_seconds(str(ends)) - now if ends else _SOON_S
    if left_s < _SOON_S:
        seen = f"{where}: its certificate ends in {left_s / 86_400:.0f} days"
        return Reached(seen, "tell whoever runs it", works=True)
    return Reached(f"{where}: {tls.version()}, certificate good for {left_s / 86_400:.0f} days", works=True)


def _not_trusted(where: str, error: ssl.SSLCertVerificationError) -> Reached:
    remedy = "name its authority with tls.ca_file, or see whether a proxy is between"
    if error.verify_code in (_CERT_NOT_YET_VALID, _CERT_HAS_EXPIRED):
        remedy = "see that this machine's clock is right; if it is, tell whoever runs the provider"
    elif error.verify_code in (_HOSTNAME_MISMATCH, _IP_MISMATCH):
        remedy = "write the name that the certificate is for into base_url"
    return Reached(f"{where}: its certificate is not accepted ({error.verify_message})", remedy)


def _no_handshake(where: str, error: ssl.SSLError) -> Reached:
    if error.reason in _NOT_TLS:
        remedy = (
            "name the port where it speaks TLS; http:// in base_url only on a network that you trust, "
            "because key and prompts travel in the clear"
        )
        return Reached(f"{where}: does not speak TLS on this port", remedy)
    remedy = "see whether it wants a client certificate (tls.client_cert_file), and whether a proxy is between"
    return Reached(f"{where}: the TLS handshake failed ({_reason(error)})", remedy)


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or error.strerror or "no reason given").replace("_", " ").lower()


def _reach_plain(where: str, provider: Provider) -> Reached:
    with socket.create_connection((provider.host, provider.port), TIMEOUT_S) as connection:
        answer = _ask(connection, provider.host)
    status = answer.partition(b" ")[2][:3]
    is_http = answer.startswith(b"HTTP/")
    # Some servers tell in plain HTTP that they expect TLS, with a 400.
    if is_http and status != b"400":
        return Reached(f"{where}: speaks plain HTTP", works=True)
    if _speaks_tls(provider):
        return Reached(f"{where}: speaks TLS, and base_url says http", f"write https:// in base_url of {provider.name}")
    if is_http:
        return Reached(f"{where}: speaks plain HTTP", works=True)
    return Reached(f"{where}: takes connections and speaks neither HTTP nor TLS", "see whether the port is right")


def _ask(connection: socket.socket, host: str) -> bytes:
    try:
        connection.sendall(f"HEAD / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
        return connection.recv(64)
    except OSError:  # silence and a closed connection say as little as words that are no HTTP
        return b""


def _speaks_tls(provider: Provider) -> bool:
    """Tell whether a handshake gets anywhere; whom the other side claims to be does not matter here."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((provider.host, provider.port), TIMEOUT_S) as connection,
            context.wrap_socket(connection, server_hostname=provider.host),
        ):
            return True
    except ssl.SSLError as error:
        # An alert is TLS too: it wants a client certificate, or a newer version.
        return "ALERT" in (error.reason or "")
    except OSError:
        return False
