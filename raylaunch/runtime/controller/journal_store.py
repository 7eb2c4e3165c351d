"""Copies of the journals in Ray's key-value store, for moments in which no agent has one.

A group that waits for a lost node has no agents, and neither has a deployment whose groups are
being replaced. Only deployments with fallbacks need it: of others a group that waits is all that
would be lost, and it serves nothing.
"""

from __future__ import annotations

import asyncio
import logging

from raylaunch.runtime.cluster.clock import Clock
from raylaunch.runtime.controller.deployment_record import OWNER, DeploymentRecord
from raylaunch.runtime.controller.group_set import Changes, GroupSet
from raylaunch.runtime.controller.launch_request import Request

log = logging.getLogger(__name__)

NAMESPACE = "raylaunch"
PAUSE_S = 0.2
"""Between two copies: a start notes several events at the same moment."""
IDLE_S = 30.0


class JournalStore:
    """Keeps the newest journals of one deployment.

    Args:
        request: Names the deployment and its instance.
        groups: Its groups.
        record: Its journal.
        changes: Wakes it when there is something new.
        clock: Of this process.
    """

    def __init__(
        self,
        request: Request,
        groups: GroupSet,
        record: DeploymentRecord,
        changes: Changes,
        clock: Clock,
    ) -> None:
        self._deployment = request.deployment
        self._instance = request.instance
        self._groups = groups
        self._record = record
        self._changes = changes
        self._clock = clock
        self._kept: dict[str, int] = {}
        """Owner of each copy -> its number."""

    async def run(self) -> None:
        """Keep copies until the deployment is stopped."""
        while not self._record.journal.stopping:
            version = self._changes.version
            if self._record.journal.loaded.fallbacks:
                await self._keep_newest()
            await self._clock.sleep(PAUSE_S)
            await self._changes.wait(version, IDLE_S)

    async def remove(self) -> None:
        """Remove what was kept, after a stop."""
        if self._kept:
            await asyncio.to_thread(remove_all, self._deployment, self._instance)

    async def _keep_newest(self) -> None:
        journals = {OWNER: (self._record.journal.number, self._record.copy)}
        for group in self._groups:
            journals[group.name] = (group.journal.number, group.copy)
        for owner, (newest, copy) in journals.items():
            if self._kept.get(owner) == newest:
                continue
            number, data = copy()
            await asyncio.to_thread(put, self._deployment, self._instance, owner, data)
            self._kept[owner] = number


def put(deployment: str, instance: str, owner: str, data: bytes) -> None:
    """Keep a journal; nothing is kept while Ray's GCS does not answer."""
    from ray.exceptions import RayError
    from ray.experimental.internal_kv import _internal_kv_put

    try:
        _internal_kv_put(_prefix(deployment, instance) + owner, data, namespace=NAMESPACE)
    except RayError as error:
        # The agents have copies too, as long as there are any.
        log.warning("no copy of the journal of %r is kept: %s", owner, error)


def read_all(deployment: str, instance: str) -> list[tuple[str, bytes]]:
    """Return the journals that were kept, each with its owner."""
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_list

    prefix = _prefix(deployment, instance)
    found = []
    for key in _internal_kv_list(prefix, namespace=NAMESPACE):
        data = _internal_kv_get(key, namespace=NAMESPACE)
        if data is not None:
            found.append((key.decode().removeprefix(prefix), data))
    return found


def remove_all(deployment: str, instance: str) -> None:
    """Remove the journals of one start."""
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(_prefix(deployment, instance), del_by_prefix=True, namespace=NAMESPACE)


def _prefix(deployment: str, instance: str) -> str:
    return f"journal:{deployment}/{instance}/"
