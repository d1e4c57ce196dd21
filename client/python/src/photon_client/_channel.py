"""How a client reaches its server; the same for both clients."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from pathlib import Path

import grpc

from photon_client._retry import Attempts
from photon_client.errors import from_grpc
from photon_client.types import RetryPolicy, Tls

#: Proxies choose the replica by it; servers ignore it.
AFFINITY_HEADER = "x-photon-affinity"


def _pem(source: bytes | Path | None) -> bytes | None:
    return source.read_bytes() if isinstance(source, Path) else source


def credentials(tls: Tls) -> grpc.ChannelCredentials:
    if (tls.certificate is None) != (tls.key is None):
        raise ValueError("tls: a certificate and its key go together")
    return grpc.ssl_channel_credentials(
        root_certificates=_pem(tls.authorities),
        private_key=_pem(tls.key),
        certificate_chain=_pem(tls.certificate),
    )


def check_key_is_safe(target: str, api_key: str | None, tls: Tls | None, insecure: bool) -> None:
    """Whoever listens on the way could use a key that is sent in plaintext."""
    local = re.match(r"(unix:|unix-abstract:|((ipv4|dns):(///)?)?(localhost|127\.)|(ipv6:)?\[::1\])", target)
    if api_key and tls is None and not insecure and local is None:
        raise ValueError(
            f"api_key: would go to {target} in plaintext; give tls, or insecure=True if you trust the way"
        )


@dataclass(frozen=True)
class Call:
    """What belongs to one call, whatever it asks for."""

    request_id: str
    metadata: tuple[tuple[str, str], ...]
    attempts: Attempts

    def remaining_s(self) -> float | None:
        """The timeout of an attempt that begins now."""
        return self.attempts.remaining_s()

    def delay_after(self, failed: grpc.RpcError, *, began: bool = False) -> float:
        """Seconds to wait before the next attempt. Raises the error where there is to be none, as always
        after something of an answer came (``began``)."""
        error = from_grpc(failed, self.request_id)
        delay = None if began else self.attempts.delay_after(error)
        if delay is None:
            raise error from None
        return delay


@dataclass(frozen=True)
class CallDefaults:
    """What the calls of a client have in common."""

    api_key: str | None
    timeout_s: float | None
    retry: RetryPolicy

    def call(
        self, repeatable: bool, affinity: str, timeout_s: float | None, request_id: str | None
    ) -> Call:
        identifier = request_id or uuid.uuid4().hex
        metadata = [("x-request-id", identifier)]
        if affinity:
            metadata.append((AFFINITY_HEADER, affinity))
        if self.api_key:
            metadata.append(("authorization", f"Bearer {self.api_key}"))
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        attempts = Attempts(self.retry, timeout_s, repeatable=repeatable)
        return Call(identifier, tuple(metadata), attempts)
