"""Rounds of the availability benchmark with a fallback: a host is lost, and comes back.

Two test hosts as in `availability_hosts`, dp=2 over both, and dp=1 as the fallback. The network of
the host without the gateway is cut until the fallback serves. Its guards and servers live on
meanwhile: with the usual grace for orphans they hold the host's NPUs when it is back.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from availability_hosts import HostService
from availability_rounds import DETECTED_S, QUIET_S, RECOVERED_S, Round, show
from availability_service import AwaitedError, Clients
from benchmark_hosts import open_hosts

DEGRADE_S = 5.0
GROW_BACK_S = 5.0
AWAY_S = 10.0
"""The host stays away for so long after the fallback has begun to serve."""
ANSWER_S = 60.0
READY = ("phase", "ready")
FALLBACK = (
    "fallback=[{set: {parallel.data: 1}}]",
    f"health.degrade_after_s={DEGRADE_S:g}",
    f"health.grow_back_after_s={GROW_BACK_S:g}",
)


def run_lose_node(rounds: int, folder: Path, limit_s: float) -> list[Round]:
    """Lose the worker and bring it back `rounds` times under load; begin none after `limit_s`.

    Raises:
        AwaitedError: the deployment did not start.
    """
    until = time.monotonic() + limit_s
    done: list[Round] = []
    with open_hosts(folder / "hosts", folder / "cache") as pair:
        service = HostService(pair)
        service.start("local-dual", *FALLBACK)
        with service.clients() as clients:
            for _ in range(rounds):
                if time.monotonic() > until:
                    break
                watched = LostHost(service, clients)
                for kind, work in (("host lost", watched.lose), ("host back", watched.bring_back)):
                    one = Round("lose-node", kind)
                    done.append(one)
                    service.run_round(one, clients, work)
                    show(one)
                if None in (done[-1].recovery_s, done[-2].recovery_s):
                    break  # what follows would count the effects of this one
    return done


class LostHost:
    """One loss of the worker.

    Args:
        service: The deployment.
        clients: What they saw says when the fallback answers.
    """

    def __init__(self, service: HostService, clients: Clients) -> None:
        self._service = service
        self._clients = clients
        self._worker = service.pair.hosts[1]
        self._guards = self._count_guards()

    def lose(self, one: Round) -> None:
        """Cut the worker; the round is over when the fallback has answered."""
        last = self._service.events()[-1]["number"]
        began = time.time()
        self._worker.cut()
        try:
            failed = self._service.await_event(last, None, "failure", "", DETECTED_S)
            one.detection_s = failed["at"] - began
            self._await("degraded", failed["number"], RECOVERED_S)
            ready = self._last_ready()
            one.start_s = ready["at"] - self._launch_of(ready)["at"]
            one.waited_s = DEGRADE_S
            one.recovery_s = self._await_answer(one, ready["at"]) - began
            self._print(last, began)
        except AwaitedError:
            self._worker.heal()
            raise
        time.sleep(AWAY_S)

    def bring_back(self, one: Round) -> None:
        """Heal the worker; the round is over when the recipe itself serves."""
        last = self._service.events()[-1]["number"]
        began = time.time()
        self._worker.heal()
        back = self._await("degraded", last, RECOVERED_S, rejoins=True)
        one.recovery_s = back["at"] - began
        events = [event for event in self._service.events() if event["number"] > last]
        one.problems += [event["text"] for event in events if event["kind"] == "failure"]
        if (guards := self._count_guards()) != self._guards:
            one.problems.append(f"{guards} guards on the lost host, before it was {self._guards}")
        self._print(last, began)

    def _count_guards(self) -> int:
        return sum("guard.py" in line for line in self._worker.processes().values())

    def _print(self, after: int, began: float) -> None:
        """Print the events since number `after`, with their times since `began`."""
        for event in self._service.events():
            if event["number"] > after and event["kind"] != "stage":
                where = f"{event['group'] or '-'} {event['kind']}"
                print(f"  {event['at'] - began:6.1f} {where}: {event['text'][:100]}", flush=True)

    def _await(
        self, kind: str, after: int, limit_s: float, *, rejoins: bool = False
    ) -> Mapping[str, Any]:
        meanwhile = self._service.rejoin if rejoins else lambda: None
        return self._service.await_event(after, None, kind, "", limit_s, meanwhile)

    def _last_ready(self) -> Mapping[str, Any]:
        events = self._service.events()
        return [event for event in events if (event["kind"], event["text"]) == READY][-1]

    def _launch_of(self, ready: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the launch that made a group ready."""
        text = f"launched attempt {ready['attempt']}"
        same = [one for one in self._service.events() if one["group"] == ready["group"]]
        return next(one for one in same if one["text"] == text)

    def _await_answer(self, one: Round, after: float) -> float:
        """Return when the first request was answered after `after`; count those before it."""
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            finished = self._clients.take()
            one.count(finished)
            answers = [seen["at"] for seen in finished if seen["result"] == "ok"]
            later = [at for at in answers if at >= after]
            if later:
                return min(later)
            time.sleep(QUIET_S / 10)  # the clients are another process
        raise AwaitedError(f"the fallback answered nothing within {ANSWER_S:g} s")
