"""The profile of every fuzz test: the same inputs in each run; RAYLAUNCH_FUZZ_EXAMPLES makes it long.

Use: `@given(...)` and, above it, `@settings.get_profile("fuzz")`.
"""

import os
import time
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("RAYLAUNCH_FUZZ_EXAMPLES", "0"))

settings.register_profile(
    "fuzz",
    # A long run searches new inputs each time; a short one repeats the same.
    derandomize=not EXAMPLES,
    max_examples=EXAMPLES or 100,
    # Milliseconds of wall clock for one input: a hang. Tests bound the CPU time by `cpu_limit`,
    # because a wall clock also counts what else the machine does.
    deadline=20_000,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="session")
def cpu_limit():
    """A context that fails when its body takes over 2 s of CPU time."""

    @contextmanager
    def limit(seconds=2.0):
        start = time.process_time()
        yield
        took = time.process_time() - start
        assert took < seconds, f"{took:.1f} s of CPU time for one input"

    return limit
