"""Read the effect of a fault from what watch.py, serve_app.py and the commands printed. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SETTLE_S = 3.0
"""What a rank finished just before its death is counted a little later."""
RANKS = frozenset({"0", "1"})

Seen = Mapping[str, Any]


def unhealthy_at(seen: Iterable[Seen], fault_at: float) -> float | None:
    """When the health of the API was first seen to be bad."""
    return next(
        (one["at"] for one in seen if one["at"] > fault_at and one.get("health", 200) != 200), None
    )


def serve_ails(one: Seen) -> str:
    """What Ray Serve's own status shows to be not as it should, "" when nothing."""
    for name, (status, replicas) in one["deployments"].items():
        if status != "HEALTHY" or set(replicas) != {"RUNNING"}:
            return f"Serve shows {name} {status} {replicas}"
    for name, status in one["serve"].items():
        if status != "RUNNING":
            return f"Serve shows {name} {status}"
    return next(
        (f"Serve shows a proxy {status}" for status in one["proxies"] if status != "HEALTHY"), ""
    )


def serve_noticed(seen: Iterable[Seen], fault_at: float) -> tuple[float, str] | None:
    """When Ray Serve's own status first showed that something is wrong, and what."""
    told = (one for one in seen if "serve" in one and one["at"] > fault_at)
    return next(((one["at"], ails) for one in told if (ails := serve_ails(one))), None)


def ranks_back_at(seen: Iterable[Seen], fault_at: float) -> float | None:
    """Return when every rank had finished a request that it got after the fault and the last outage."""
    served: set[str] = set()
    last: Mapping[str, float] | None = None
    for one in seen:
        if "done" not in one or one["at"] < fault_at + SETTLE_S:
            continue
        now = one["done"]
        if now is None:
            served.clear()
        elif last is not None:
            served |= {rank for rank, count in now.items() if count > last.get(rank, 0.0)}
        last = now
        if served >= RANKS:
            return float(one["at"])
    return None


def serve_back_at(seen: Sequence[Seen], fault_at: float) -> float | None:
    """When Serve had all replicas and proxies again, after it had noticed, and a request succeeded."""
    noticed = serve_noticed(seen, fault_at)
    if noticed is None:
        return None
    told = (one for one in seen if "serve" in one and one["at"] > noticed[0])
    whole = next((one["at"] for one in told if not serve_ails(one)), None)
    if whole is None:
        return None
    return next((float(one["at"]) for one in seen if one["at"] >= whole and one.get("ok")), None)


def requests(seen: Iterable[Seen], fault_at: float) -> tuple[int, int]:
    """Requests that ended after the fault, and how many of them failed."""
    ends = [one["ok"] for one in seen if "ok" in one and one["at"] > fault_at]
    return len(ends), ends.count(False)
