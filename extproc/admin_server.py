"""Where the admin API listens: always on the Unix socket (0600), over TCP only with certificates on both sides.

Owns the sockets and the API's methods; what they answer is `admin.py`'s. Invariants: nothing is served over TCP to a
caller without a certificate that the client authority signed; a renewed certificate is taken with the next connection,
one that cannot be used is not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc

from extproc.admin import AdminService, Context
from extproc.admin_tls import AdminPem, read_admin_tls
from extproc.settings import AdminListen, StartError
from extproc.wire.pb import admin_pb2 as pb

SERVICE = "gateway.v1.Admin"
SOCKET_MODE = 0o600

log = logging.getLogger(__name__)


class AdminServer:
    """Serves the API on a Unix socket, and on an address where one is given."""

    def __init__(self, path: Path, service: AdminService, admin: AdminListen | None = None) -> None:
        self._path = path
        self._admin = admin
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        methods = {
            "Status": _unary(service.status, pb.StatusRequest),
            "ListHealth": _unary(service.list_health, pb.ListHealthRequest),
            "SetHealth": _unary(service.set_health, pb.SetHealthRequest),
            "ListRequests": grpc.unary_stream_rpc_method_handler(
                service.list_requests, pb.ListRequestsRequest.FromString, _serialized
            ),
            "Explain": _unary(service.explain, pb.ExplainRequest),
            "GetSnapshot": _unary(service.get_snapshot, pb.GetSnapshotRequest),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))

    async def start(self) -> None:
        """Bind and begin to serve; StartError when an address or a certificate cannot be had."""
        self._path.unlink(missing_ok=True)
        _bound(lambda: self._server.add_insecure_port(f"unix:{self._path}"), str(self._path))
        if self._admin is not None:
            address, credentials = str(self._admin.address), _Credentials(self._admin).made()
            _bound(lambda: self._server.add_secure_port(address, credentials), address)
        await self._server.start()
        self._path.chmod(SOCKET_MODE)

    async def stop(self, grace_s: float) -> None:
        """End; running calls have `grace_s`."""
        await self._server.stop(grace_s)
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


class _Credentials:
    """The server's side of TLS, read anew for every connection and taken when it is whole."""

    def __init__(self, admin: AdminListen) -> None:
        self._admin = admin
        self._pem = read_admin_tls(admin)

    def made(self) -> grpc.ServerCredentials:
        """Return credentials that ask every caller for a certificate."""
        renewed: Any = self._renewed  # may say None, which the stubs do not know
        return grpc.dynamic_ssl_server_credentials(_configuration(self._pem), renewed, True)

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what changed, None to go on as before; gRPC asks from a thread of its own."""
        try:
            pem = read_admin_tls(self._admin)
        except StartError as error:
            log.warning("the admin API keeps its certificate: %s", error)
            return None
        if pem == self._pem:
            return None
        self._pem = pem
        return _configuration(pem)


def _configuration(pem: AdminPem) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.cert)], pem.client_ca)


def _bound(bind: Callable[[], int], where: str) -> None:
    try:
        port = bind()
    except RuntimeError:
        port = 0
    if port == 0:
        raise StartError(f"The admin API cannot listen on {where}: is the address another program's?")


def _unary(call: Callable[[Any, Context], Any], request: Any) -> grpc.RpcMethodHandler[Any, Any]:
    return grpc.unary_unary_rpc_method_handler(call, request.FromString, _serialized)


def _serialized(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
