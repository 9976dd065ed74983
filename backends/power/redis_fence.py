"""Who may set a card's limit, of several hosts? Whoever has its key in Redis.

The key holds the holder's name and expires; the fencing token is a counter beside it that only grows. Before each
change the key is read, and no change is made later than a margin before it would expire: a process that was stopped
for long finds out before it writes. Needs the `redis` package (`pip install joulegate[redis]`).
"""

from __future__ import annotations

import importlib
import time
from typing import TYPE_CHECKING, Any

from backends.power.lease import LeaseFault, LeaseHeld

if TYPE_CHECKING:
    from collections.abc import Callable

EXPIRES_SECONDS = 15.0
MARGIN_SECONDS = 5.0
ANSWER_SECONDS = 2.0
_RENEW = """if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) end return 0"""
_RELEASE = """if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"""


def connect(url: str) -> Any:
    """A client. LeaseFault without the package; Redis itself is asked at the first change."""
    try:
        redis = importlib.import_module("redis")
    except ModuleNotFoundError:
        raise LeaseFault("power.redis_url needs the redis package: pip install 'joulegate[redis]'") from None
    try:
        return redis.Redis.from_url(url, socket_timeout=ANSWER_SECONDS, socket_connect_timeout=ANSWER_SECONDS)
    except ValueError as error:
        raise LeaseFault(f"power.redis_url: {error}") from None


class RedisFence:
    """One card's key."""

    def __init__(
        self, client: Any, device: str, holder: str, expires_seconds: float = EXPIRES_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._client = client
        self._key = f"joulegate:power:{device}"
        self._device = device
        self._holder = holder.encode()
        self._expires_ms = round(expires_seconds * 1000)
        self._usable_seconds = expires_seconds * (1 - MARGIN_SECONDS / EXPIRES_SECONDS)
        self._clock = clock
        self._until = 0.0

    def acquire(self) -> int:
        """Set the key, if it is nobody's. LeaseHeld, LeaseFault."""
        started = self._clock()
        if not self._ask(lambda: self._client.set(self._key, self._holder, nx=True, px=self._expires_ms)):
            holder = self._ask(lambda: self._client.get(self._key))
            if holder != self._holder:
                name = (holder or b"somebody").decode(errors="replace")[:120]
                raise LeaseHeld(f"{self._device}: {name} sets its limit, says Redis")
            self.renew()
        self._until = started + self._usable_seconds
        return int(self._ask(lambda: self._client.incr(f"{self._key}:token")))

    def check(self) -> None:
        """The key is ours, and will be for long enough. LeaseFault."""
        if self._clock() > self._until:
            raise LeaseFault(f"{self._device}: its lease in Redis was not renewed in time")
        if self._ask(lambda: self._client.get(self._key)) != self._holder:
            raise LeaseFault(f"{self._device}: its lease in Redis is somebody else's")

    def renew(self) -> None:
        """Have it expire later. LeaseFault if it is not ours, or if Redis is gone and the time runs out."""
        started = self._clock()
        try:
            ours = self._ask(lambda: self._client.eval(_RENEW, 1, self._key, self._holder, self._expires_ms))
        except LeaseFault:
            if started < self._until:  # nobody else can have it yet
                return
            raise
        if not ours:
            raise LeaseFault(f"{self._device}: its lease in Redis is somebody else's")
        self._until = started + self._usable_seconds

    def release(self) -> None:
        """Delete the key if it is ours. If Redis is gone it expires by itself."""
        self._until = 0.0
        try:
            self._ask(lambda: self._client.eval(_RELEASE, 1, self._key, self._holder))
        except LeaseFault:
            return

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except Exception as error:  # noqa: BLE001  (every fault of the client's is one to us: no lease, no change)
            raise LeaseFault(f"Redis cannot be asked who sets the limit of {self._device}: {error}"[:300]) from None
