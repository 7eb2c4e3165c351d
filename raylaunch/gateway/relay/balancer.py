"""Chooses the member that gets a request: a pure rule over what is known of the members."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from raylaunch.gateway.gateway_messages import Policy
from raylaunch.gateway.relay.prefix_index import PrefixIndex

LOAD_FACTOR = 1.5
LOAD_SLACK = 4.0
"""A prefix is not followed to a member with more than 1.5 times the least load plus 4 requests:
a cache hit saves one prefill, a queue costs several."""


@dataclass(frozen=True)
class Candidate:
    """A member that may get the request."""

    id: str
    load: float
    """Requests per rank and weight."""
    last_used: int
    """Number of the request that it got last: equal loads take turns."""
    ranks: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Wish:
    """What the request itself asks of the balancer."""

    rank: int | None = None
    """From the header X-data-parallel-rank."""
    session: str = ""
    """Value of the sticky header."""
    prefix: list[bytes] = field(default_factory=list)


class Balancer:
    """Holds the policy and, for `prefix-aware`, the prefixes."""

    def __init__(self, policy: Policy = "least-loaded") -> None:
        self.policy: Policy = policy
        self.prefixes = PrefixIndex()

    def choose(self, candidates: Sequence[Candidate], wish: Wish) -> str:
        """Return the id of the member for this request. There is at least one candidate."""
        fitting = [one for one in candidates if wish.rank in one.ranks] or list(candidates)
        chosen = self._by_policy(fitting, wish)
        if self.policy == "prefix-aware":
            self.prefixes.add(wish.prefix, chosen)
        return chosen

    def _by_policy(self, candidates: list[Candidate], wish: Wish) -> str:
        least = min(candidates, key=lambda one: (one.load, one.last_used))
        match self.policy:
            case "round-robin":
                return min(candidates, key=lambda one: one.last_used).id
            case "sticky" if wish.session:
                return max(candidates, key=lambda one: _rendezvous(wish.session, one.id)).id
            case "prefix-aware":
                return self._by_prefix(candidates, wish, least)
            case _:
                return least.id

    def _by_prefix(self, candidates: list[Candidate], wish: Wish, least: Candidate) -> str:
        loads = {one.id: one.load for one in candidates}
        cached = self.prefixes.find(wish.prefix, loads.keys())
        if cached is None or loads[cached] > LOAD_FACTOR * least.load + LOAD_SLACK:
            return least.id
        return cached


def _rendezvous(session: str, member: str) -> bytes:
    """Highest-random-weight hashing: a member that leaves moves only its own sessions."""
    return hashlib.blake2b(f"{session}\0{member}".encode(), digest_size=8).digest()
