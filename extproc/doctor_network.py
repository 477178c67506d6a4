"""Whether a provider can be reached from here: its name, its port, its certificate. No request and no key is sent."""

from __future__ import annotations

import socket
import ssl

from extproc.config.snapshot import Provider

TIMEOUT_S = 5.0
_SOON_S = 14 * 86_400.0


def reach(provider: Provider, now: float) -> tuple[str, str]:
    """Return what was seen, and what to do about it; nothing to do when the provider can be reached."""
    where = f"provider {provider.name} ({provider.host}:{provider.port})"
    try:
        with socket.create_connection((provider.host, provider.port), TIMEOUT_S) as connection:
            if provider.scheme == "http":
                return f"{where}: takes connections", ""
            context = ssl.create_default_context(cafile=provider.tls.ca_file)
            if provider.tls.client_cert_file:
                context.load_cert_chain(provider.tls.client_cert_file, provider.tls.client_key_file)
            with context.wrap_socket(connection, server_hostname=provider.host) as tls:
                return _certificate(where, tls, now)
    except socket.gaierror:
        return f"{where}: the name is not known", "look for a slip in base_url, and see that DNS works here"
    except ssl.SSLCertVerificationError as error:
        remedy = "name its authority with tls.ca_file, or see whether a proxy is between"
        return f"{where}: its certificate is not trusted ({error.verify_message})", remedy
    except ssl.SSLError:
        return (
            f"{where}: does not speak TLS on this port",
            "write http:// in base_url if that is meant, or another port",
        )
    except TimeoutError:
        return f"{where}: no answer within {TIMEOUT_S:g} s", "see whether a firewall or a proxy is between"
    except OSError as error:
        return (
            f"{where}: {error.strerror or 'no connection'}",
            "see whether it runs and whether port and host are right",
        )


def _certificate(where: str, tls: ssl.SSLSocket, now: float) -> tuple[str, str]:
    ends = (tls.getpeercert() or {}).get("notAfter")
    left_s = ssl.cert_time_to_seconds(str(ends)) - now if ends else _SOON_S
    if left_s < _SOON_S:
        return f"{where}: its certificate ends in {left_s / 86_400:.0f} days", "tell whoever runs it"
    return f"{where}: {tls.version()}, certificate good for {left_s / 86_400:.0f} days", ""
