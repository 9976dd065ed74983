"""What may an API key still use? Concurrency, request and token rates, token budgets."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scheduler.events import KeyQuota


class Refusal(NamedTuple):
    """Why a key gets no further call now. `retry_after_seconds` None = not before something of its own ends."""

    reason: str
    message: str
    retry_after_seconds: float | None


class KeyUse:
    """One key's quota and what it has used.

    Rates are token buckets that hold one minute's worth. Tokens are reserved at admission (prompt estimate plus the
    answer's limit, where the client gave one) and settled with the engine's count at the end, so a burst of long calls
    cannot pass together before the first of them is counted.
    """

    __slots__ = ("budget_ends_at", "budget_used_tokens", "level_at", "quota", "requests_left", "running", "tokens_left")

    def __init__(self, quota: KeyQuota, now: float) -> None:
        self.quota = quota
        self.running = 0
        self.level_at = now
        self.requests_left = float(quota.requests_per_minute or 0)
        self.tokens_left = float(quota.tokens_per_minute or 0)
        self.budget_used_tokens = 0
        self.budget_ends_at = now + quota.budget_seconds

    def _refill(self, now: float) -> None:
        quota = self.quota
        passed_minutes = max(0.0, now - self.level_at) / 60.0
        self.level_at = now
        if (rate := quota.requests_per_minute) is not None:
            self.requests_left = min(float(rate), self.requests_left + rate * passed_minutes)
        if (rate := quota.tokens_per_minute) is not None:
            self.tokens_left = min(float(rate), self.tokens_left + rate * passed_minutes)
        if now >= self.budget_ends_at:
            periods = int((now - self.budget_ends_at) // quota.budget_seconds) + 1
            self.budget_ends_at += periods * quota.budget_seconds
            self.budget_used_tokens = 0

    def admit(self, tokens: int, now: float) -> Refusal | None:
        """Take one request and `tokens` from the quota, or say why not (then nothing is taken)."""
        quota = self.quota
        self._refill(now)
        if quota.max_concurrency is not None and self.running >= quota.max_concurrency:
            return Refusal(
                "key_concurrency",
                f"this API key may have {quota.max_concurrency} calls at once; wait for one to end",
                None,
            )
        if (budget := quota.token_budget) is not None and self.budget_used_tokens + tokens > budget:
            return Refusal(
                "key_token_budget",
                f"this API key's budget of {budget} tokens has {max(0, budget - self.budget_used_tokens)} left"
                f" and this call may need {tokens}",
                self.budget_ends_at - now,
            )
        if (rate := quota.requests_per_minute) is not None and self.requests_left < 1.0:
            wait = (1.0 - self.requests_left) * 60.0 / rate
            return Refusal("key_request_rate", f"this API key may make {rate} requests a minute", wait)
        if (rate := quota.tokens_per_minute) is not None:
            # A call larger than the whole bucket is let through when the bucket is full: it could never run otherwise.
            needed = min(float(tokens), float(rate))
            if self.tokens_left < needed:
                wait = (needed - self.tokens_left) * 60.0 / rate
                return Refusal("key_token_rate", f"this API key may use {rate} tokens a minute", wait)
            self.tokens_left -= tokens
        self.requests_left -= 1.0
        self.budget_used_tokens += tokens
        self.running += 1
        return None

    def settle(self, reserved_tokens: int, used_tokens: int) -> None:
        """A call ended: give back what it did not use, or take what it used beyond its reservation."""
        self.running -= 1
        self.tokens_left += reserved_tokens - used_tokens
        self.budget_used_tokens = max(0, self.budget_used_tokens + used_tokens - reserved_tokens)


def is_limited(quota: KeyQuota) -> bool:
    """Whether a quota limits anything."""
    limits = (quota.max_concurrency, quota.requests_per_minute, quota.tokens_per_minute, quota.token_budget)
    return any(limit is not None for limit in limits)


class Quotas:
    """All keys that are limited in something; any other call costs nothing here."""

    def __init__(self, quotas: Iterable[KeyQuota], now: float) -> None:
        quotas = tuple(quotas)
        self.by_key = {quota.name: KeyUse(quota, now) for quota in quotas if is_limited(quota)}
        self._weights = {quota.name: quota.weight for quota in quotas}

    def weight_of(self, key: str) -> float:
        """Its share of an engine that others wait for, to theirs."""
        return self._weights.get(key, 1.0)

    def change(self, quotas: Iterable[KeyQuota], now: float) -> None:
        """New quotas after a reload; what was used stays used. The caller counts the calls under way anew."""
        quotas = tuple(quotas)
        self._weights = {quota.name: quota.weight for quota in quotas}
        old = self.by_key
        self.by_key = {quota.name: KeyUse(quota, now) for quota in quotas if is_limited(quota)}
        for name, use in self.by_key.items():
            if (before := old.get(name)) is None:
                continue
            before._refill(now)
            use.budget_used_tokens = before.budget_used_tokens
            use.budget_ends_at = min(before.budget_ends_at, use.budget_ends_at)
            if before.quota.requests_per_minute is not None:
                use.requests_left = min(use.requests_left, before.requests_left)
            if before.quota.tokens_per_minute is not None:
                use.tokens_left = min(use.tokens_left, before.tokens_left)

    def budgets(self, now: float) -> tuple[tuple[str, int, float], ...]:
        """What a restart must not forget: (key, used tokens, seconds until the period ends)."""
        return tuple(
            (name, use.budget_used_tokens, max(0.0, use.budget_ends_at - now))
            for name, use in self.by_key.items()
            if use.quota.token_budget is not None
        )

    def restore(self, budgets: Iterable[tuple[str, int, float]], now: float) -> None:
        """Take over `budgets()` of an earlier process; a period that ended meanwhile has seconds below zero."""
        for name, used_tokens, ends_in_seconds in budgets:
            if (use := self.by_key.get(name)) is not None:
                use.budget_used_tokens = used_tokens
                use.budget_ends_at = now + ends_in_seconds
                use._refill(now)
