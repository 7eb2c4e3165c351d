"""The profiles of the fuzz tests; RAYLAUNCH_FUZZ_EXAMPLES makes all of them long.

Use: `@given(...)` and, above it, `@settings.get_profile("fuzz")`, or "fuzz-costly" where one input
takes many milliseconds.
"""

import os
import resource
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
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
)
settings.register_profile(
    "fuzz-costly", parent=settings.get_profile("fuzz"), max_examples=EXAMPLES or 60
)

MEMORY_LIMIT_MB = 300


@pytest.fixture(autouse=True)
def memory_limit():
    """Fail a test that raises the peak of this process's memory by over 300 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mb < MEMORY_LIMIT_MB, f"the inputs of this test took {grown_mb:.0f} MB"


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
