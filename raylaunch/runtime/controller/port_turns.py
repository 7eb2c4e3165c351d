"""The other deployments of the cluster: what their plans take, and that two of them do not choose at the same moment.

Each controller keeps its own plan and shows it to whoever asks. HCCL and the handshake listen for moments only, and a
deployment that is still loading does not listen on its API's port yet: looking for listeners would miss them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from raylaunch.errors import RaylaunchError
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.runtime.cluster.connection import NAMESPACE

CONTROLLER = "controller:"
"""What the Ray name of a deployment's controller begins with."""
ANSWER_S = 15.0
"""Patience with one neighbour: it may be choosing, which takes as long as its ways are tried."""

Ticket = tuple[float, str]
"""When somebody began to choose, and the name of the deployment."""


@dataclass(frozen=True)
class Neighbours:
    """The other deployments: their plans, and the names of those that did not answer."""

    plans: tuple[LaunchPlan, ...] = ()
    silent: tuple[str, ...] = ()


class Turns:
    """Who chooses first where several deployments plan at once: Lamport's bakery, each asking all the others.

    Whoever began earlier chooses first; the later one waits for its plan and goes around it.
    """

    def __init__(self, deployment: str) -> None:
        self._deployment = deployment
        self._latest = 0.0
        self._ticket: Ticket | None = None
        self._chosen = asyncio.Event()

    @contextlib.contextmanager
    def take(self) -> Iterator[Ticket]:
        """Choose while this is open; those who began later wait for it. Clocks of two nodes may differ a little."""
        self._ticket = (max(time.time(), self._latest + 1e-3), self._deployment)
        self._chosen.clear()
        try:
            yield self._ticket
        finally:
            self._ticket = None
            self._chosen.set()

    async def wait(self, ticket: Ticket) -> None:
        """Return when this deployment is not choosing, or began later than the owner of `ticket`."""
        self._latest = max(self._latest, ticket[0])
        if self._ticket is not None and self._ticket < ticket:
            await self._chosen.wait()


async def ask_plans(deployment: str, ticket: Ticket | None = None) -> Neighbours:
    """Ask the controllers of all other deployments of the cluster for their plans."""
    names = [name for name in await asyncio.to_thread(running_names) if name != deployment]
    answers = await asyncio.gather(
        *(_ask_one(name, ticket or (time.time(), deployment)) for name in names)
    )
    silent = tuple(
        name for name, answer in zip(names, answers, strict=True) if isinstance(answer, Exception)
    )
    return Neighbours(tuple(plan for plan in answers if isinstance(plan, LaunchPlan)), silent)


def running_names() -> list[str]:
    """Names of all deployments of the cluster."""
    import ray

    actors = ray.util.list_named_actors(all_namespaces=True)
    names = [str(actor["name"]) for actor in actors if actor["namespace"] == NAMESPACE]
    return sorted(name.removeprefix(CONTROLLER) for name in names if name.startswith(CONTROLLER))


async def _ask_one(name: str, ticket: Ticket) -> LaunchPlan | Exception | None:
    from raylaunch.runtime.controller.controller_client import find_controller

    controller = await asyncio.to_thread(find_controller, name)
    if controller is None:  # stopped in the meantime
        return None
    try:
        return await controller.show_plan(ticket, ANSWER_S)
    except (AttributeError, RaylaunchError) as error:  # AttributeError: of an older raylaunch
        return error
