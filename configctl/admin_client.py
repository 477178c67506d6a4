"""Asks a running gateway through its admin API: the Unix socket of its data directory, or TCP with certificates.

Owns the connection and the sentences for a gateway that is not there or does not answer. Returns the API's own
messages; their JSON is `live_shapes.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import orjson

from configctl.options import DEFAULT_DATA_DIR, Place
from configctl.refusals import Refusal
from extproc.data_dir import DataDir
from extproc.wire.pb import admin_pb2 as pb

SERVICE = "gateway.v1.Admin"
TIMEOUT_S = 10.0


class AdminError(Refusal):
    """The gateway cannot be asked, or refused; the message is a whole sentence."""


class AdminClient:
    """One connection to a gateway; a context manager."""

    def __init__(self, data_dir: str | None) -> None:
        shown = data_dir or DEFAULT_DATA_DIR
        self._where, self._nobody_there = f"on {shown}", _nobody_on(shown)
        socket = DataDir(Path(shown)).admin_socket
        if not socket.exists():
            raise AdminError(self._nobody_there)
        self._channel = grpc.insecure_channel(f"unix:{socket}")

    @classmethod
    def of(cls, place: Place) -> AdminClient:
        """Connect to where flags say: an address with certificates, else the data directory's socket."""
        if not place.admin:
            return cls(place.data_dir)
        client = cls.__new__(cls)
        client._where, client._nobody_there = f"at {place.admin}", _nobody_at(place.admin)
        # No proxy: the two ends know each other by their certificates.
        options = [("grpc.enable_http_proxy", 0)]
        client._channel = grpc.secure_channel(place.admin, _credentials(place), options=options)
        return client

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def status(self) -> pb.StatusReply:
        """Return what the instance runs."""
        reply: pb.StatusReply = self._ask("Status", pb.StatusRequest(), pb.StatusReply)
        return reply

    def health(self) -> list[pb.HealthRow]:
        """Return every provider account and target."""
        return list(self._ask("ListHealth", pb.ListHealthRequest(), pb.ListHealthReply).rows)

    def set_health(self, request: pb.SetHealthRequest) -> pb.HealthRow:
        """Carry out an order and return the subject's new row."""
        reply: pb.HealthRow = self._ask("SetHealth", request, pb.HealthRow)
        return reply

    def requests(self, request: pb.ListRequestsRequest) -> Iterator[pb.RequestRow]:
        """Yield past requests and, with `follow`, new ones for ever."""
        call = self._channel.unary_stream(
            f"/{SERVICE}/ListRequests",
            request_serializer=pb.ListRequestsRequest.SerializeToString,
            response_deserializer=pb.RequestRow.FromString,
        )
        with self._faults():
            yield from call(request, timeout=None if request.follow else TIMEOUT_S)

    def explain(self, request_id: str) -> dict[str, Any]:
        """Return one request's story, in the form of `explain --json`."""
        reply = self._ask("Explain", pb.ExplainRequest(request_id=request_id), pb.ExplainReply)
        story: dict[str, Any] = orjson.loads(reply.json)
        return story

    def snapshot(self) -> dict[str, Any]:
        """Return the active config, masked."""
        reply = self._ask("GetSnapshot", pb.GetSnapshotRequest(), pb.GetSnapshotReply)
        snapshot: dict[str, Any] = orjson.loads(reply.json)
        return snapshot

    def _ask(self, method: str, request: Any, reply: Any) -> Any:
        call = self._channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        with self._faults():
            return call(request, timeout=TIMEOUT_S)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise AdminError(self._sentence(error)) from None

    def _sentence(self, error: Any) -> str:
        code = error.code()
        if code is grpc.StatusCode.UNAVAILABLE:
            return self._nobody_there
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"The gateway {self._where} did not answer within {TIMEOUT_S:g} s."
        if code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION):
            return str(error.details())
        return f"The gateway {self._where} could not answer ({code.name})."


def _nobody_on(data_dir: str) -> str:
    return (
        f"No gateway runs on the data directory {data_dir}: start one with `extproc up`, "
        "or name another directory with --data-dir."
    )


def _nobody_at(address: str) -> str:
    return (
        f"No gateway can be reached at {address}: either none listens there (`extproc up --admin-listen`), or one of "
        "the two certificates is not accepted: --tls-ca must have signed the gateway's, for this host, and the "
        "gateway's --admin-client-ca must have signed --tls-cert."
    )


def _credentials(place: Place) -> grpc.ChannelCredentials:
    files = {"--tls-ca": place.tls_ca, "--tls-key": place.tls_key, "--tls-cert": place.tls_cert}
    missing = [flag for flag, name in files.items() if not name]
    if missing:
        raise AdminError(
            f"--admin needs {' and '.join(sorted(missing))} too: the gateway takes callers by certificate."
        )
    try:
        return grpc.ssl_channel_credentials(*(Path(name or "").read_bytes() for name in files.values()))
    except OSError as error:
        raise AdminError(f"{error.filename} cannot be read: {error.strerror}.") from None
