"""How hypothesis works in every test: slow machines are no defect, and a failure says how to get it again."""

from __future__ import annotations

import os

try:
    from hypothesis import HealthCheck, settings
except ModuleNotFoundError:  # the environment of tests/vllm is without it
    pass
else:
    settings.register_profile(
        "joulegate",
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
        derandomize=bool(os.environ.get("CI")),  # there, a change is judged by what it changed and not by luck
    )
    settings.load_profile("joulegate")
