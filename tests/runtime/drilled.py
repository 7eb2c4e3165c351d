"""A drill of a deployment that is ready, for tests with real vLLM."""

from __future__ import annotations

SHOWN = ("detection_s", "recovery_s", "start_s", "beyond_s", "failed", "requests", "detected_by")


def drill(user, name, faults, deadline_s):
    """Inject the faults; return the outcome by fault, and the status afterwards."""
    words = [word for fault in faults for word in ("--fault", fault)]
    done = user.run("drill", name, "--yes", "-o", "json", *words, deadline_s=deadline_s)
    assert done.code == 0, done.out + done.err
    outcomes = {one["fault"]: one for one in done.json()}
    for one in outcomes.values():
        print(one["fault"], *(f"{key}={one[key]}" for key in SHOWN))
    status = user.run("status", name, "-o", "json").json()
    assert status["phase"] == "ready"
    return outcomes, status
