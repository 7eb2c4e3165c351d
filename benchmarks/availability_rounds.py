"""Rounds of the availability benchmark: one fault or one change of the deployment each."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from availability_service import (
    NAME,
    AwaitedError,
    Clients,
    Service,
    Shape,
    clients_of,
    kill,
    pids_by_group,
    running_service,
    words_of,
)

from raylaunch.supervise.deployment_status import Event
from raylaunch.supervise.state import Phase

QUIET_S = 3.0
"""Requests flow for so long before a fault and after the recovery."""
DETECTED_S, RECOVERED_S = 120.0, 600.0
BEYOND_S = 3.0
FALLBACK_BEYOND_S = 5.0
REFUSED_S = 1.0
"""Goals: capacity beyond the servers' own start, and a fallback's answer; refused connections
after the keeper's death."""

GROUP_FAULTS: Mapping[str, str] = {
    "kill-engine": "kill-engine",
    "kill-primary": "kill-server",
    "stop-primary": "stop-server",
}
"""Faults that cost a group its attempt, and what its agent executes."""
AGENT_FAULTS = ("kill-agent",)
"""Faults after which another agent adopts the server, which runs on."""
PLANE_FAULTS = ("kill-controller", "kill-relay", "kill-haproxy", "kill-keeper")
BROKEN: Mapping[str, tuple[str, ...]] = {
    "a flag that vLLM does not know": ("args.no-such-flag=1",),
    "a model that is not there": ("model.tiny=null", "model.path=/no/such/model"),
    "a value that vLLM refuses": ("args.dtype=float13",),
    "more NPUs than there are": ("hardware.npus_per_server=64", "hardware.npus_per_node=64"),
}
BROKEN_AT_ITS_START = {
    False: {"a variable that vLLM refuses": ("env.VLLM_CPU_KVCACHE_SPACE=none",)},
    True: {"out of memory at its weights": ("env.STANDIN_FAIL=npu-oom",)},
}
"""What no check refuses, so that the servers start: with real vLLM, and with the stand-in."""
UPGRADES = ("args.max-num-seqs=7", "args.max-num-seqs=8")
"""In turns: each differs from what runs."""


@dataclass
class Round:
    """What one round did to the clients.

    Durations in seconds; None: not applicable, not reached.
    """

    part: str
    kind: str
    date: str = field(default_factory=lambda: dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"))
    load: float = field(default_factory=lambda: round(os.getloadavg()[0], 1))
    plain: int = 0
    plain_failed: int = 0
    streams: int = 0
    streams_failed: int = 0
    refused: int = 0
    empty: int = 0
    slowest_s: float = 0.0
    detection_s: float | None = None
    recovery_s: float | None = None
    start_s: float | None = None
    waited_s: float = 0.0
    """How long the settings of the recipe make the recovery wait."""
    continued: int | None = None
    problems: list[str] = field(default_factory=list)

    def count(self, requests: Sequence[Mapping[str, Any]]) -> None:
        """Add finished requests."""
        for one in requests:
            failed = one["result"] != "ok"
            if one["kind"] == "plain":
                self.plain += 1
                self.plain_failed += failed
                self.slowest_s = max(self.slowest_s, one["s"])
            else:
                self.streams += 1
                self.streams_failed += failed
            self.refused += one["result"].startswith("refused")
            self.empty += one["result"].startswith("empty")
        failures = sorted({f"{one['kind']}: {one['result']}" for one in requests} - _GOOD)
        self.problems += failures[:5]

    @property
    def beyond_s(self) -> float | None:
        """Recovery beyond detection of a hang and the servers' own start."""
        if self.recovery_s is None or self.start_s is None:
            return None
        hang_s = self.detection_s or 0.0 if self.kind == "stop-primary" else 0.0
        return self.recovery_s - self.start_s - hang_s - self.waited_s

    @property
    def limit_s(self) -> float:
        """The goal for `beyond_s`."""
        return FALLBACK_BEYOND_S if self.part == "lose-node" else BEYOND_S

    def as_json(self) -> dict[str, Any]:
        """Return the round as it is stored."""
        return asdict(self)


_GOOD = {"plain: ok", "stream: ok"}


def run_faults(
    part: str, shape: Shape, faults: Sequence[str], rounds: int, folder: Path, limit_s: float
) -> list[Round]:
    """Inject each fault `rounds` times, in turns; begin none after `limit_s`."""
    until = time.monotonic() + limit_s
    done: list[Round] = []
    with running_service(folder, shape) as service, clients_of(service) as clients:
        for fault in [fault for _ in range(rounds) for fault in faults]:
            if time.monotonic() > until:
                break
            one = Round(part, fault)
            done.append(one)
            clients.take()
            _observe(service, clients, one, lambda one=one: _one_fault(service, one))
            show(one)
            if one.recovery_s is None:
                break  # what follows would count the effects of this one
    return done


def _observe(service: Service, clients: Clients, one: Round, work: Callable[[], None]) -> None:
    """Run a round; count what the clients saw until everything is quiet again."""
    time.sleep(QUIET_S)
    before = _continued(service)
    try:
        work()
    except AwaitedError as error:
        one.problems.append(str(error))
    time.sleep(QUIET_S)
    one.count(clients.take())
    after = _continued(service)
    if before is not None and after is not None and one.kind != "kill-relay":
        one.continued = after - before


def _continued(service: Service) -> int | None:
    with contextlib.suppress(AwaitedError):
        return service.gateway_status().counters.continued
    return None


def _one_fault(service: Service, one: Round) -> None:
    if one.kind in GROUP_FAULTS:
        _strike_group(service, one)
    elif one.kind in AGENT_FAULTS:
        _kill_agent(service, one)
    elif one.kind == "kill-controller":
        _kill_controller(service, one)
    else:
        _kill_gateway_process(service, one)


def _strike_group(service: Service, one: Round) -> None:
    group = random.choice(service.status().groups).name
    others = {name: pids for name, pids in pids_by_group().items() if name != group}
    last = service.last_event()
    injected = service.controller.inject(GROUP_FAULTS[one.kind], 0, group)

    def mine(event: Event) -> bool:
        return event.group in ("", group)

    failure = service.await_event(
        last, lambda event: mine(event) and event.kind == "failure", DETECTED_S, "detected"
    )
    one.detection_s = max(0.0, failure.at - injected.at)
    ready = service.await_event(
        failure.number,
        lambda event: mine(event) and (event.kind, event.text) == ("phase", "ready"),
        RECOVERED_S,
        "ready again",
    )
    one.recovery_s = ready.at - injected.at
    for event in service.controller.events(last):
        if mine(event) and event.text == f"launched attempt {ready.attempt}":
            one.start_s = ready.at - event.at
    after = pids_by_group()
    if any(after.get(name) != pids for name, pids in others.items()):
        one.problems.append("processes of another group are not those of before")


def _kill_agent(service: Service, one: Round) -> None:
    group = random.choice(service.status().groups).name
    last, before = service.last_event(), pids_by_group()
    injected = service.controller.inject(one.kind, 0, group)

    def await_kind(kind: str) -> Event:
        return service.await_event(
            last, lambda event: (event.group, event.kind) == (group, kind), DETECTED_S, kind
        )

    one.detection_s = max(0.0, await_kind("orphaned").at - injected.at)
    one.recovery_s = await_kind("adopted").at - injected.at
    if pids_by_group() != before:
        one.problems.append("servers were not left alone")


def _kill_controller(service: Service, one: Round) -> None:
    last, before = service.last_event(), pids_by_group()
    began = time.time()
    service.controller.crash()
    adopted = service.await_event(
        last, lambda event: event.kind == "adopted", DETECTED_S, "adopted"
    )
    one.recovery_s = adopted.at - began
    if pids_by_group() != before:
        one.problems.append("servers were not left alone")


def _kill_gateway_process(service: Service, one: Round) -> None:
    name = one.kind.removeprefix("kill-")
    before = service.gateway_status()
    old = getattr(before, f"{name}_pid")
    began = time.monotonic()
    kill(old)
    while time.monotonic() - began < DETECTED_S:
        with contextlib.suppress(AwaitedError):
            status = service.gateway_status()
            if getattr(status, f"{name}_pid") not in (old, None) and status.haproxy_pid:
                one.recovery_s = time.monotonic() - began
                return
        time.sleep(0.05)  # no event of the gateway reaches this process
    raise AwaitedError(f"the gateway's {name} was not started again within {DETECTED_S:g} s")


def run_upgrades(part: str, shape: Shape, rounds: int, folder: Path, limit_s: float) -> list[Round]:
    """Upgrade again and again under load; begin none after `limit_s`. Then `stop` under load."""
    until = time.monotonic() + limit_s
    done: list[Round] = []
    with running_service(folder, shape) as service, clients_of(service) as clients:
        for number in range(rounds):
            if time.monotonic() > until:
                break
            one = Round(part, "upgrade")
            done.append(one)
            clients.take()
            setting = UPGRADES[number % len(UPGRADES)]
            _observe(service, clients, one, lambda o=one, s=setting: _upgrade(service, o, s))
            show(one)
        clients.take()
        stop = Round(part, "stop")
        clients.close()
        service.run("stop", NAME)
        clients.wait()
        stop.count(clients.take())
        show(stop)
    return [*done, stop]


def _upgrade(service: Service, one: Round, setting: str) -> None:
    before, last = pids_by_group(), service.last_event()
    began = time.monotonic()
    done = service.run("upgrade", NAME, *words_of((setting,)), "-o", "json")
    if done.returncode:
        one.problems.append(f"exit {done.returncode}: {done.stderr.strip()[-300:]}")
        return
    one.recovery_s = time.monotonic() - began
    if set(pids_by_group()) & set(before):
        one.problems.append("groups of before are left")
    texts = [event.text for event in service.controller.events(last)]
    beside = any(text.startswith("start ") and "," in text for text in texts)
    if beside != one.part.endswith("beside"):
        one.problems.append(f"the new groups were {'' if beside else 'not '}started beside the old")


def run_broken(part: str, shape: Shape, folder: Path, limit_s: float) -> list[Round]:
    """Upgrade to recipes that cannot serve: what runs must not notice."""
    until = time.monotonic() + limit_s
    done: list[Round] = []
    with running_service(folder, shape) as service, clients_of(service) as clients:
        for kind, settings in (BROKEN | BROKEN_AT_ITS_START[shape.is_standin]).items():
            if time.monotonic() > until:
                break
            one = Round(part, kind)
            done.append(one)
            clients.take()
            _observe(service, clients, one, lambda o=one, s=settings: _break(service, o, s))
            show(one)
    return done


def _break(service: Service, one: Round, settings: Sequence[str]) -> None:
    before, last = pids_by_group(), service.last_event()
    began = time.monotonic()
    done = service.run("upgrade", NAME, *words_of(settings), "-o", "json")
    one.recovery_s = time.monotonic() - began
    if not done.returncode:
        one.problems.append("the upgrade was not refused")
    after = pids_by_group()
    if changed := sorted(name for name in before | after if before.get(name) != after.get(name)):
        one.problems.append(f"processes of {', '.join(changed)} are not those of before")
    if service.status().phase is not Phase.READY:
        one.problems.append(f"the deployment is {service.status().phase}")
    texts = [event.text for event in service.controller.events(last)]
    if any(text.startswith("send traffic to") for text in texts):
        one.problems.append("a new group had traffic")


def show(one: Round) -> None:
    """Print a round while the others run."""
    print(json.dumps(one.as_json()), flush=True)
