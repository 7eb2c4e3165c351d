"""A drill of a deployment that is ready, and what its diagnoses have to name."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

SHOWN = ("detection_s", "recovery_s", "start_s", "beyond_s", "failed", "requests", "detected_by")
ENGINE = "EngineCore|SIGKILL"
"""The exit status of an engine core is known until its parent has reaped it."""
CAUSES = {
    "kill-engine": ENGINE,
    "kill-headless": "SIGKILL",
    "kill-primary": "SIGKILL",
    "stop-headless": "rank 1",
    "kill-guard": "the guard",
    "steal-port": ENGINE,
}
"""Expressions that match the diagnosis, by fault: those that restart the group."""


def check_causes(events, outcomes):
    """The diagnosis of each fault names the server that it hit, and the cause."""
    diagnoses = {event.attempt: event for event in events if event.kind == "diagnosis"}
    assert CAUSES.keys() & outcomes.keys()
    for name in CAUSES.keys() & outcomes.keys():
        (drilled,) = [event for event in events if event.text == outcomes[name].what]
        found = diagnoses[drilled.attempt]
        print(name, found.server, found.text)
        assert found.server == drilled.server, name
        assert re.search(CAUSES[name], found.text), name


def drill(user, name, faults, deadline_s):
    """Inject the faults; return the outcome by fault, and the status afterwards."""
    words = [word for fault in faults for word in ("--fault", fault)]
    done = user.run("drill", name, "--yes", "-o", "json", *words, deadline_s=deadline_s)
    assert done.code == 0, done.out + done.err
    outcomes = {one["fault"]: one for one in done.json()}
    for one in outcomes.values():
        print(one["fault"], *(f"{key}={one[key]}" for key in SHOWN))
    shown = user.run("events", name, "-o", "json")
    events = [SimpleNamespace(**json.loads(line)) for line in shown.out.splitlines()]
    check_causes(events, {fault: SimpleNamespace(**one) for fault, one in outcomes.items()})
    status = user.run("status", name, "-o", "json").json()
    assert status["phase"] == "ready"
    return outcomes, status
