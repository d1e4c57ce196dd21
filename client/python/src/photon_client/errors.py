"""What goes wrong, as exceptions that say which field, and when to come again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import grpc
from google.protobuf.message import DecodeError

from photon_client import public_formats_pb2 as formats

# Whose errors the server's own are: those of proxies and of the network have no such mark.
_SERVER_DOMAIN = "photon.v1"


@dataclass(frozen=True)
class FieldViolation:
    """A field of the request that the server refused: ``parameters.sampling.top_p``, and why."""

    field: str
    description: str


class PhotonError(Exception):
    """A call failed. Its subclasses say how; ``except PhotonError`` catches them all."""

    #: gRPC's name of the status: ``"INVALID_ARGUMENT"``.
    code: str
    #: What the server or the network says, for people.
    message: str
    #: Under which the server logged the call. Empty, where one prompt of many failed.
    request_id: str
    #: Fields at fault, if the server named them.
    field_violations: tuple[FieldViolation, ...]
    #: When the server said to come again.
    retry_after_s: float | None
    #: The server itself refused the call and did nothing for it, so that it may be tried again; false
    #: where a proxy or the network failed and nobody knows.
    refused_by_server: bool

    def __init__(
        self,
        code: str,
        message: str,
        *,
        request_id: str = "",
        field_violations: tuple[FieldViolation, ...] = (),
        retry_after_s: float | None = None,
        refused_by_server: bool = False,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.request_id = request_id
        self.field_violations = field_violations
        self.retry_after_s = retry_after_s
        self.refused_by_server = refused_by_server


class InvalidArgumentError(PhotonError):
    """The request is wrong; :attr:`field_violations` says where."""


class NotFoundError(PhotonError):
    """No such document: it expired, belongs to somebody else, or lives on another replica."""


class ResourceExhaustedError(PhotonError):
    """The server, or the key's limit, is full; :attr:`retry_after_s` says when to come again."""


class UnavailableError(PhotonError):
    """No server answers, or it is draining, or its engine failed."""


class DeadlineExceededError(PhotonError):
    """``timeout_s`` passed."""


class CancelledError(PhotonError):
    """The call was cancelled, by this program or by an operator."""


class UnauthenticatedError(PhotonError):
    """The server needs an API key, and there was none or a wrong one."""


class PermissionDeniedError(PhotonError):
    """The key does not allow this."""


_CLASSES: dict[str, type[PhotonError]] = {
    "INVALID_ARGUMENT": InvalidArgumentError,
    "NOT_FOUND": NotFoundError,
    "RESOURCE_EXHAUSTED": ResourceExhaustedError,
    "UNAVAILABLE": UnavailableError,
    "DEADLINE_EXCEEDED": DeadlineExceededError,
    "CANCELLED": CancelledError,
    "UNAUTHENTICATED": UnauthenticatedError,
    "PERMISSION_DENIED": PermissionDeniedError,
}
# What gRPC says of a call that was on its way when a server that drains closed the connection.
_CROSSED = ("CANCELLED", "Received RST_STREAM with error code 8")
_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


class _Failed(Protocol):
    """What errors of grpc and of grpc.aio have in common."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> object: ...


def from_grpc(error: grpc.RpcError, request_id: str) -> PhotonError:
    """The exception for an error of grpc or grpc.aio."""
    failed = cast(_Failed, error)
    code = failed.code().name
    violations: tuple[FieldViolation, ...] = ()
    retry_after_s = None
    refused_by_server = False
    for kind, value in _details(failed):
        if kind == "google.rpc.BadRequest":
            violations = tuple(
                FieldViolation(violation.field, violation.description)
                for violation in formats.BadRequest.FromString(value).field_violations
            )
        elif kind == "google.rpc.RetryInfo":
            delay = formats.RetryInfo.FromString(value).retry_delay
            retry_after_s = delay.seconds + delay.nanos / 1e9
        elif kind == "google.rpc.ErrorInfo":
            refused_by_server = formats.ErrorInfo.FromString(value).domain == _SERVER_DOMAIN
    if code == "CANCELLED" and not refused_by_server and failed.details() in _CROSSED:
        code = "UNAVAILABLE"
    return _CLASSES.get(code, PhotonError)(
        code,
        failed.details() or "",
        request_id=request_id,
        field_violations=violations,
        retry_after_s=retry_after_s,
        refused_by_server=refused_by_server,
    )


def from_code(number: int, message: str) -> PhotonError:
    """The exception for the error of one prompt among many."""
    code = _NAMES.get(number, "UNKNOWN")
    return _CLASSES.get(code, PhotonError)(code, message, refused_by_server=True)


def _details(failed: _Failed) -> list[tuple[str, bytes]]:
    metadata = cast("list[tuple[str, str | bytes]] | None", failed.trailing_metadata()) or []
    try:
        return [
            (detail.type_url.rpartition("/")[2], detail.value)
            for key, value in metadata
            if key == "grpc-status-details-bin" and isinstance(value, bytes)
            for detail in formats.Status.FromString(value).details
        ]
    except DecodeError:  # of somebody else's making
        return []
