"""Open files: as many as this process may have, and a word if the configuration can need more."""

from __future__ import annotations

import resource
from typing import Any

import pytest

from proxy import descriptors
from proxy.config_file import load


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    try:
        assert descriptors.raise_limit() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(("limit", "said"), [(1000 + 20 + 30 + 64, False), (1000 + 20 + 30 + 63, True)])
def test_what_the_limits_need_is_compared_with_what_there_is(limit: int, said: bool) -> None:
    engines = [{"url": f"http://e{count}:1", "max_connections": count} for count in (20, 30)]
    config = load(None, {}, {"engines": engines, "limits": {"client_connections": 1000}})
    events: list[tuple[str, dict[str, Any]]] = []
    descriptors.warn(config, limit, lambda name, **fields: events.append((name, fields)))
    assert [name for name, _ in events] == (["few_file_descriptors"] if said else [])
    if said:
        assert (events[0][1]["limit"], events[0][1]["needed"]) == (limit, limit + 1)
