"""What a fault did, told from the lines of asking/watch.py, asking/serve_app.py and the ends of commands. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SETTLE_S = 2.0
"""What a rank finished just before its death is counted a little later."""
RANKS = frozenset({"0", "1"})

Seen = Mapping[str, Any]


def unhealthy_at(seen: Iterable[Seen], fault_at: float) -> float | None:
    """When the health of the API was first seen to be bad."""
    return next((one["at"] for one in seen if one["at"] > fault_at and one.get("health", 200) != 200), None)


def serve_noticed(seen: Sequence[Seen], fault_at: float) -> tuple[float, str] | None:
    """When Ray Serve's own status first differed from what it was, and how."""
    told = [one for one in seen if "serve" in one]
    before = [one for one in told if one["at"] <= fault_at][-1:] or told[:1]
    for one in told:
        if one["at"] > fault_at and any(one[key] != before[0][key] for key in ("serve", "deployments", "proxies")):
            changed = [key for key in ("serve", "deployments", "proxies") if one[key] != before[0][key]]
            return one["at"], f"status of Serve: {one[changed[0]]}"
    return None


def ranks_back_at(seen: Iterable[Seen], fault_at: float) -> float | None:
    """When every rank had finished a request that it got after the fault; an API that is away starts the count anew."""
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
    told = [one for one in seen if "serve" in one]
    before = ([one for one in told if one["at"] <= fault_at] or told)[-1 if told[0]["at"] <= fault_at else 0]
    keys = ("serve", "deployments", "proxies")
    whole = next((one["at"] for one in told if one["at"] > noticed[0] and all(one[k] == before[k] for k in keys)), None)
    if whole is None:
        return None
    return next((float(one["at"]) for one in seen if one["at"] >= whole and one.get("ok")), None)


def requests(seen: Iterable[Seen], fault_at: float) -> tuple[int, int]:
    """Requests that ended after the fault, and how many of them failed."""
    ends = [one["ok"] for one in seen if "ok" in one and one["at"] > fault_at]
    return len(ends), ends.count(False)
