"""The profiles of the fuzz tests; RAYLAUNCH_FUZZ_EXAMPLES makes all of them long.

Use: `@given(...)` and, above it, `@settings.get_profile("fuzz")`, or "fuzz-costly" where one input
takes many milliseconds.
"""

import os

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("RAYLAUNCH_FUZZ_EXAMPLES", "0"))

settings.register_profile(
    "fuzz",
    # A long run searches new inputs each time; a short one repeats the same.
    derandomize=not EXAMPLES,
    max_examples=EXAMPLES or 100,
    # Milliseconds of wall clock for one input: a hang. Tests bound the CPU time by `bounded`,
    # because a wall clock also counts what else the machine does.
    deadline=60_000,
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
