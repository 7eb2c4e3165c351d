"""Ports of the other deployments, and an order for those that choose theirs at the same moment.

Each controller keeps the plans of its groups and shows them on request. HCCL and vLLM's handshake
listen for moments only, and a deployment that is still loading does not listen on its API's port
yet: a search for listeners would miss them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from raylaunch.errors import RaylaunchError
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.runtime.cluster.connection import NAMESPACE

log = logging.getLogger(__name__)

CONTROLLER = "controller:"
"""Prefix of the Ray name of a deployment's controller."""
ANSWER_S = 15.0
"""Time-out of one neighbour: it may be choosing, which takes as long as its links are tried."""

Ticket = tuple[float, str]
"""When a deployment began to choose, and its name. The wall clock orders tickets of different
controllers; nothing is timed by it."""


@dataclass(frozen=True)
class Neighbours:
    """All other groups: their plans, and the names of deployments that did not answer."""

    plans: tuple[LaunchPlan, ...] = ()
    silent: tuple[str, ...] = ()


class Turns:
    """Orders deployments that plan at the same moment: Lamport's bakery, each asks all others.

    The one that began earlier chooses first; a later one waits for its plans and avoids their
    ports. The groups of one deployment choose one after the other.

    Args:
        deployment: The deployment that chooses.
        own_plans: Returns the newest plan of each of its groups that has one.
    """

    def __init__(
        self, deployment: str, own_plans: Callable[[], Sequence[LaunchPlan]] = tuple
    ) -> None:
        self._deployment = deployment
        self._own_plans = own_plans
        self._siblings = asyncio.Lock()
        self._latest = 0.0
        self._ticket: Ticket | None = None
        self._chosen = asyncio.Event()

    @contextlib.asynccontextmanager
    async def choose(self, group: str) -> AsyncIterator[Neighbours]:
        """Choose the ports of one group while this context is open, around the given plans."""
        async with self._siblings:
            with self.take() as ticket:
                others = await ask_plans(self._deployment, ticket)
                siblings = [plan for plan in self._own_plans() if plan.group != group]
                yield replace(others, plans=(*others.plans, *siblings))

    @contextlib.contextmanager
    def take(self) -> Iterator[Ticket]:
        """Choose while this context is open; those that began later wait for its end."""
        # Later than every ticket that was seen, although the clocks of two nodes differ a little.
        now = max(time.time(), self._latest + 1e-3)
        self._ticket = (now, self._deployment)
        self._chosen.clear()
        try:
            yield self._ticket
        finally:
            self._ticket = None
            self._chosen.set()

    async def wait(self, ticket: Ticket) -> None:
        """Return when this deployment is not choosing, or began later than the `ticket`'s owner."""
        self._latest = max(self._latest, ticket[0])
        if self._ticket is not None and self._ticket < ticket:
            await self._chosen.wait()


async def ask_plans(deployment: str, ticket: Ticket | None = None) -> Neighbours:
    """Ask the controllers of all other deployments of the cluster for their plans."""
    running = await asyncio.to_thread(running_names)
    names = [name for name in running if name != deployment]
    own = ticket or (time.time(), deployment)
    answers = await asyncio.gather(*(_ask_one(name, own) for name in names))
    plans: list[LaunchPlan] = []
    silent = []
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, list):
            plans += answer
        elif isinstance(answer, Exception):
            log.warning("the deployment %s did not show its plans: %s", name, answer)
            silent.append(name)
    return Neighbours(tuple(plans), tuple(silent))


def running_names() -> list[str]:
    """Return the names of all deployments of the cluster."""
    import ray

    actors = ray.util.list_named_actors(all_namespaces=True)
    names = [str(actor["name"]) for actor in actors if actor["namespace"] == NAMESPACE]
    return sorted(name.removeprefix(CONTROLLER) for name in names if name.startswith(CONTROLLER))


async def _ask_one(name: str, ticket: Ticket) -> list[LaunchPlan] | Exception:
    from raylaunch.runtime.controller.controller_client import find_controller

    controller = await asyncio.to_thread(find_controller, name)
    if controller is None:  # stopped in the meantime
        return []
    try:
        return await controller.show_plans(ticket, ANSWER_S)
    except (AttributeError, RaylaunchError) as error:  # AttributeError: of an older raylaunch
        return error
