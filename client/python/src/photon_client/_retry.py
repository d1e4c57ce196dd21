"""Whether a failed call is tried again, and when. Knows no channel and does not sleep."""

from __future__ import annotations

import random
import time

from photon_client.errors import PhotonError, ResourceExhaustedError, UnavailableError
from photon_client.types import RetryPolicy


class Attempts:
    """The attempts of one call."""

    def __init__(self, policy: RetryPolicy, timeout_s: float | None, *, repeatable: bool) -> None:
        """``repeatable``: doing it twice does no harm."""
        self._policy = policy
        self._repeatable = repeatable
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._made = 0

    def remaining_s(self) -> float | None:
        """The timeout of an attempt that begins now."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def delay_after(self, error: PhotonError) -> float | None:
        """Seconds to wait before the next attempt; None: give up."""
        self._made += 1
        if self._made >= self._policy.max_attempts or not self._may_repeat(error):
            return None
        backoff = self._policy.initial_backoff_s * self._policy.multiplier ** (self._made - 1)
        delay = min(backoff, self._policy.max_backoff_s) * random.uniform(0.5, 1)
        if error.retry_after_s is not None:
            # Not all at once.
            delay += error.retry_after_s
        remaining = self.remaining_s()
        return None if remaining is not None and delay >= remaining else delay

    def _may_repeat(self, error: PhotonError) -> bool:
        if isinstance(error, UnavailableError):
            return self._repeatable or error.refused_by_server
        return isinstance(error, ResourceExhaustedError) and error.retry_after_s is not None


class Waiting:
    """Looks again and again, ever less often, until time is up."""

    def __init__(self, timeout_s: float) -> None:
        self._give_up = time.monotonic() + timeout_s
        self._pause_s = 0.05

    def look_s(self) -> float | None:
        """How long the next look may take; None: time is up."""
        remaining = self._give_up - time.monotonic()
        return min(remaining, 5.0) if remaining > 0 else None

    def pause_s(self) -> float:
        """How long to wait before that."""
        pause = min(self._pause_s, max(0.0, self._give_up - time.monotonic()))
        self._pause_s = min(1.0, self._pause_s * 1.5)
        return pause
