"""What a hook gets: one JSON document for each change of a group's phase."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable

from raylaunch.recipe.monitoring_settings import Notify
from raylaunch.supervise.deployment_status import Event, Status
from raylaunch.supervise.diagnosis.root_cause import Diagnosis
from raylaunch.supervise.state import Phase

SCHEMA = 1
MASK = "***"
_BROKEN = (Phase.RESTARTING, Phase.FAILED)


def phase_events(events: Iterable[Event], after: int) -> list[Event]:
    """Return the changes of phase that are newer than event number `after`."""
    return [event for event in events if event.kind == "phase" and event.number > after]


def wants(hook: Notify, event: Event) -> bool:
    """Return whether a hook is called for a change of phase."""
    return event.text in hook.phases


def make_notice(
    event: Event, status: Status, diagnosis: Diagnosis | None, secrets: Collection[str]
) -> bytes:
    """Return the document.

    Args:
        event: The change of phase.
        status: Of the deployment, read after it.
        diagnosis: Of the last failure of the group.
        secrets: Values that must not be in it, for example in a quoted log line.
    """
    group = next((one for one in status.groups if one.name == event.group), None)
    document: dict[str, object] = {
        "schema": SCHEMA,
        "deployment": status.deployment,
        "group": event.group,
        "phase": event.text,
        "deployment_phase": status.phase.value,
        "attempt": event.attempt,
        "at": event.at,
        "event": event.number,
        "endpoint": status.endpoint,
    }
    if event.text in _BROKEN and diagnosis is not None:
        document["diagnosis"] = {
            "id": diagnosis.id,
            "class": diagnosis.kind,
            "server": diagnosis.root,
            "cause": diagnosis.cause,
            "remedy": diagnosis.remedy,
        }
    if event.text == Phase.FAILED and group is not None and group.error:
        document["error"] = {key: group.error.get(key, "") for key in ("what", "why", "todo")}
    return mask(json.dumps(document, ensure_ascii=False), secrets).encode()


def mask(text: str, secrets: Collection[str]) -> str:
    """Return the JSON text without the values of secrets."""
    # The longest first: one value may be part of another.
    for value in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(json.dumps(value, ensure_ascii=False)[1:-1], MASK)
    return text


def describe_hook(hook: Notify) -> str:
    """Return a hook for messages: without the path and query of its URL, which may be a secret."""
    if hook.url:
        from urllib.parse import urlsplit

        parts = urlsplit(hook.url)
        return f"{parts.scheme}://{parts.hostname}"
    return hook.command[0]
