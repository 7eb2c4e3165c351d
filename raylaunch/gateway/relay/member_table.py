"""The relay's members: who may get a request, what each has in flight, and who waits for one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from raylaunch.gateway.gateway_messages import GatewayOptions, Member, MemberStatus, RelayCounters
from raylaunch.gateway.openai_errors import all_groups_failed, hold_queue_full, no_group_ready
from raylaunch.gateway.relay.balancer import Balancer, Candidate, Wish

SUSPECT_S = 1.0
"""For so long a member that refused or broke a connection comes after the others."""
RETRY_S = 0.25
"""Between tries while every ready member refuses: the controller has not taken it out yet."""


@dataclass
class Lease:
    """One attempt on one member. `abort` makes the attempt fail with TimeoutError."""

    member: Member
    scope: asyncio.Timeout | None = None
    aborted: bool = False
    suspect: bool = False
    """Whether the member was under suspicion when it was chosen."""

    def abort(self) -> None:
        """Give the attempt up: the member was taken out."""
        if self.scope is not None and not self.aborted:
            self.scope.reschedule(0)
        self.aborted = True


@dataclass
class _Seat:
    """A member and what this relay knows of it beyond the controller's word."""

    member: Member
    leases: list[Lease] = field(default_factory=list)
    others: float = 0.0
    """Requests that reached the server past this relay, by the controller's last push."""
    suspect_until: float = 0.0
    last_used: int = 0
    requests: int = 0
    failures: int = 0

    @property
    def load(self) -> float:
        """Requests per rank and weight."""
        capacity = max(1, len(self.member.ranks)) * max(self.member.weight, 1e-6)
        return (len(self.leases) + self.others) / capacity


class MemberTable:
    """Membership comes from the controller alone; a refused connection is a hint for a second."""

    def __init__(self, options: GatewayOptions, clock: Callable[[], float]) -> None:
        self.options = options
        self.counting = RelayCounters()
        self.balancer = Balancer(options.policy)
        self._clock = clock
        self._seats: dict[str, _Seat] = {}
        self._numbers = itertools.count(1)
        self._changed = asyncio.Event()

    def set_options(self, options: GatewayOptions) -> None:
        """Take other limits and another policy; the prefixes seen so far stay."""
        self.options = options
        self.balancer.policy = options.policy
        self._wake()

    def configure(self, members: Sequence[Member]) -> None:
        """Take the controller's membership; abort what runs on members that are down or gone."""
        wanted = {member.id: member for member in members}
        for gone in self._seats.keys() - wanted.keys():
            self._abort_all(self._seats.pop(gone))
        for member in members:
            self._place(member)
        self._wake()

    def _place(self, member: Member) -> None:
        seat = self._seats.get(member.id)
        if seat is not None and seat.member.url != member.url:
            self._abort_all(seat)
            seat = None
        if seat is None:
            seat = self._seats[member.id] = _Seat(member)
        if member.state == "ready" and seat.member.state != "ready":
            seat.suspect_until = 0.0
        seat.member = member
        seat.others = max(0.0, member.running + member.waiting - len(seat.leases))
        if member.state in ("down", "failed"):
            self._abort_all(seat)

    def _abort_all(self, seat: _Seat) -> None:
        for lease in list(seat.leases):
            lease.abort()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def has_ready(self) -> bool:
        """Return whether the controller calls any member ready."""
        return any(seat.member.state == "ready" for seat in self._seats.values())

    def have_failed(self) -> bool:
        """Return whether the controller calls every member failed."""
        return bool(self._seats) and all(
            seat.member.state == "failed" for seat in self._seats.values()
        )

    def take(self, wish: Wish, *, suspects: bool) -> Lease | None:
        """Choose a member now; None when none may get the request."""
        now = self._clock()
        ready = [seat for seat in self._seats.values() if seat.member.state == "ready"]
        trusted = [seat for seat in ready if seat.suspect_until <= now]
        seats = trusted or (ready if suspects else [])
        if not seats:
            return None
        candidates = [
            Candidate(seat.member.id, seat.load, seat.last_used, seat.member.ranks)
            for seat in seats
        ]
        seat = self._seats[self.balancer.choose(candidates, wish)]
        seat.last_used = next(self._numbers)
        return Lease(seat.member, suspect=not trusted)

    async def acquire(self, wish: Wish, deadline: float) -> Lease:
        """Return a lease, waiting in the hold queue while no member can take the request.

        Raises:
            GatewayError: The queue is full, the deadline (monotonic clock) has passed, or every
                group has failed.
        """
        lease = self.take(wish, suspects=False)
        if lease is not None:
            return lease
        if self.counting.held >= self.options.hold_requests:
            self.counting.rejected += 1
            raise hold_queue_full("requests")
        with self._holding() as began:
            while lease is None:
                remaining_s = deadline - self._clock()
                if self.have_failed():
                    raise all_groups_failed()
                if remaining_s <= 0:
                    raise no_group_ready(self._clock() - began)
                await self._change(min(remaining_s, RETRY_S) if self.has_ready() else remaining_s)
                lease = self.take(wish, suspects=True)
        return lease

    @contextlib.contextmanager
    def _holding(self) -> Iterator[float]:
        began = self._clock()
        self.counting.held += 1
        self.counting.held_total += 1
        try:
            yield began
        finally:
            self.counting.held -= 1
            self.counting.held_s += self._clock() - began

    async def _change(self, timeout_s: float) -> None:
        changed = self._changed
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await changed.wait()

    @contextlib.asynccontextmanager
    async def attempt(self, lease: Lease) -> AsyncIterator[None]:
        """Count the attempt as in flight; TimeoutError inside when the member is taken out."""
        seat = self._seats.get(lease.member.id)
        if seat is not None:
            seat.leases.append(lease)
            seat.requests += 1
        try:
            async with asyncio.timeout(None) as scope:
                lease.scope = scope
                if lease.aborted or seat is None:
                    scope.reschedule(0)
                yield
        finally:
            lease.scope = None
            if seat is not None:
                seat.leases.remove(lease)
                if not seat.leases:
                    self._wake()  # a drain may wait for this

    def suspect(self, lease: Lease) -> None:
        """Prefer other members for a moment: this one broke or refused a connection."""
        seat = self._seats.get(lease.member.id)
        if seat is not None:
            seat.failures += 1
            seat.suspect_until = self._clock() + SUSPECT_S

    def in_flight(self, ids: Sequence[str] | None = None) -> int:
        """Return the attempts that run, on all members or on some."""
        seats = (seat for seat in self._seats.values() if ids is None or seat.member.id in ids)
        return sum(len(seat.leases) for seat in seats)

    async def drained(self, ids: Sequence[str], timeout_s: float) -> bool:
        """Wait until the members have nothing in flight; False when the time was not enough."""
        deadline = self._clock() + timeout_s
        while self.in_flight(ids):
            remaining_s = deadline - self._clock()
            if remaining_s <= 0:
                return False
            await self._change(remaining_s)
        return True

    def status(self) -> list[MemberStatus]:
        """Return each member's numbers."""
        return [
            MemberStatus(
                id=seat.member.id,
                state=seat.member.state,
                in_flight=len(seat.leases),
                requests=seat.requests,
                failures=seat.failures,
            )
            for seat in self._seats.values()
        ]
