"""Commands that change a running deployment: one at a time, group after group.

A group is drained before it is stopped, and the next one waits until it serves again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from raylaunch.errors import (
    BusyError,
    ChecksFailedError,
    NodeError,
    RaylaunchError,
    RecipeError,
    VerifyError,
)
from raylaunch.recipe.groups import GroupSpec, expand_groups
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.runtime.cluster.task_owner import TaskOwner
from raylaunch.runtime.controller.changes.full_check import Room, find_problem, has_room
from raylaunch.runtime.controller.changes.group_changes import GroupChanges
from raylaunch.runtime.controller.changes.hold_check import refuse_short_hold
from raylaunch.runtime.controller.changes.verdict import Verdict
from raylaunch.runtime.controller.deployment_record import DeploymentRecord
from raylaunch.runtime.controller.group.group_report import as_raylaunch_error
from raylaunch.runtime.controller.group.group_supervisor import GroupSupervisor
from raylaunch.runtime.controller.group_set import GroupSet
from raylaunch.supervise.degradation import Stage
from raylaunch.supervise.deployment_status import Status
from raylaunch.supervise.replicas import with_replicas
from raylaunch.supervise.upgrade_plan import (
    Confirm,
    Remove,
    Start,
    Step,
    Switch,
    describe,
    kept_and_new,
    name_generation,
    plan_upgrade,
)

log = logging.getLogger(__name__)


class Operations:
    """Restarts, scales and upgrades the groups of a deployment.

    Args:
        deployment: Its name.
        groups: Its groups.
        record: Its journal.
        work: Adds and removes groups.
        tasks: Runs the operation.
    """

    def __init__(
        self,
        deployment: str,
        groups: GroupSet,
        record: DeploymentRecord,
        work: GroupChanges,
        tasks: TaskOwner,
    ) -> None:
        self.current = ""
        """What is under way, for people; "" for nothing."""
        self.error: dict[str, str] | None = None
        """Why the last operation failed, as `RaylaunchError.as_dict`; None if it did not."""
        self._deployment = deployment
        self._groups = groups
        self._record = record
        self._work = work
        self._changes = work.changes
        self._tasks = tasks
        self._task: asyncio.Task[None] | None = None
        self._verdict = Verdict(work.changes)

    def show_in(self, status: Status) -> Status:
        """Return the status with what is under way."""
        awaits = self._verdict.awaits
        return replace(status, operation=self.current, operation_error=self.error, awaits=awaits)

    def restart(self, group: str | None) -> None:
        """Begin to restart one group, or all of them one after the other.

        Raises:
            BusyError: another operation is under way.
            UnknownDeploymentError: there is no such group.
        """
        chosen = [self._groups.find(group)] if group else list(self._groups)
        self._begin(f"restart {group or 'all groups'}", lambda: self._restart_all(chosen))

    def scale(self, replicas: int) -> None:
        """Begin to add or remove groups, until there are so many replicas.

        Raises:
            BusyError: another operation is under way, or a fallback serves.
            RecipeError: the groups of this recipe are no replicas of one.
        """
        self._refuse_while_degraded()
        loaded = with_replicas(self._record.journal.loaded, replicas)
        self._begin(f"scale to {replicas} replicas", lambda: self._scale(loaded))

    def upgrade(self, loaded: LoadedRecipe, secrets: Mapping[str, str]) -> None:
        """Begin to replace what differs from another recipe; see `Upgrade`.

        Raises:
            BusyError: another operation is under way, or a fallback serves.
            RecipeError: the recipes differ in what an upgrade cannot change.
        """
        self._refuse_while_degraded()
        running = self._record.journal.loaded
        if running.recipe.gateway.enabled != loaded.recipe.gateway.enabled:
            raise RecipeError(
                "an upgrade cannot add or remove the gateway",
                why="the deployment's address would change",
                todo=f"`raylaunch stop {self._deployment}`, and start it with the new recipe",
            )
        self._work.secrets = {**self._work.secrets, **secrets}
        self._begin(f"upgrade to {loaded.name}", lambda: self._upgrade(loaded))

    async def rotate_keys(self, key_hashes: Mapping[str, str]) -> None:
        """See `Controller.rotate_keys`."""
        if self._work.gateway is None:
            raise RecipeError(f"{self._deployment} has no gateway, so it checks no API keys")
        journal = self._record.journal
        names = set(key_hashes.values())
        kept = {digest: name for digest, name in journal.key_hashes.items() if name not in names}
        changed = {**kept, **key_hashes}
        await self._work.gateway.replace_keys(changed)
        journal.key_hashes = changed
        self._record.note("command", f"replaced the API keys {', '.join(sorted(names))}")

    def resume(self) -> None:
        """Report the command during which the last controller died; roll an upgrade back."""
        journal = self._record.journal
        if not journal.operation or journal.degradation.is_switching:
            # A switch to a fallback or back is continued, not taken back.
            journal.operation = ""
            return
        what = journal.operation
        specs = journal.restore
        if specs is not None and self._work.gateway is not None:
            for name in self._groups.by_name.keys() - {spec.name for spec in specs}:
                self._work.gateway.hold_back(name)
        self._begin(what, lambda: self._fail_interrupted(what, specs))

    async def _fail_interrupted(self, what: str, specs: Sequence[GroupSpec] | None) -> None:
        if specs is not None:
            await self._roll_back(specs)
        raise RaylaunchError(
            f"{what}: interrupted" if specs is None else f"{what}: rolled back",
            why="the controller died while it was under way, and Ray restarted it",
            todo=f"`raylaunch status {self._deployment}` shows what serves; order it again",
        )

    def confirm(self, problem: str) -> None:
        """Take the verdict on the groups in `awaits`; "" if nothing is wrong with them."""
        self._verdict.give(problem)

    def cancel(self) -> None:
        """Stop what is under way: the deployment is to be stopped."""
        if self._task is not None:
            self._task.cancel()

    async def run_alone(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Carry out a change that no person has ordered, with no command beside it.

        Its error is in the status, as that of a command.

        Raises:
            BusyError: another operation is under way.
        """
        self._begin(what, work)
        assert self._task is not None
        await asyncio.wait({self._task})

    def _refuse_while_degraded(self) -> None:
        if self._record.journal.degradation.stage is not Stage.FULL:
            raise BusyError(
                f"{self._deployment} does without a node: its fallback serves, or is about to",
                todo="bring the lost node back, and try again when the recipe itself serves",
            )

    def _begin(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        if self.current:
            raise BusyError(
                f"{self._deployment}: {self.current} is under way",
                todo="try again when it has finished",
            )
        self.current = self._record.journal.operation = what
        self.error = None
        self._record.note("command", what)
        self._task = self._tasks.run_once("operation", lambda: self._run(what, work))

    async def _run(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as error:
            log.warning("%s failed", what, exc_info=error)
            self.error = as_raylaunch_error(error).as_dict()
        finally:
            self.current = self._record.journal.operation = ""
            self._changes.note()
        if self.error is None:
            self._record.note("command", f"done: {what}")
        else:
            self._record.note("failure", f"{what}: {self.error['what']}")

    # -- restart -------------------------------------------------------------------------------

    async def _restart_all(self, groups: list[GroupSupervisor]) -> None:
        for group in groups:
            await self._work.drain(group)
            attempt = group.journal.attempt
            group.loop.orders.restart()
            try:
                await self._work.await_settled(group, after=attempt)
            finally:
                # Also when it failed: it may be restarted later.
                if self._work.gateway is not None:
                    self._work.gateway.undrain(group.name)

    async def _scale(self, loaded: LoadedRecipe) -> None:
        old = [group.request.spec for group in self._groups]
        named = name_generation(expand_groups(loaded), self._record.journal.generation)
        wanted = kept_and_new(old, named)
        names = [spec.name for spec in wanted]
        added = [spec for spec in wanted if spec.name not in self._groups.by_name]
        removed = [group for group in self._groups if group.name not in names]
        try:
            await self._work.add(added)
        except Exception:
            # The deployment stays as it was.
            await self._work.remove([self._groups.find(spec.name) for spec in added])
            raise
        await self._work.remove(removed)
        self._record.journal.loaded = loaded
        self._record.changed()

    # -- upgrade -------------------------------------------------------------------------------

    async def _upgrade(self, loaded: LoadedRecipe) -> None:
        journal = self._record.journal
        old = tuple(group.request.spec for group in self._groups)
        new = name_generation(expand_groups(loaded), journal.generation + 1)
        started = _started(old, new)
        beside = self._work.gateway is not None and (
            not started or await has_room(started, Room({}))
        )
        if not beside:
            await self._refuse_unfit(started)
        steps = plan_upgrade(old, new, beside=beside)
        if self._work.gateway is not None:
            refuse_short_hold(steps, self._groups, loaded.recipe.gateway)
        # First: settings that the gateway refuses shall cost no group.
        await self._apply_gateway(loaded)
        journal.restore = old
        try:
            for step in steps:
                await self._take(step)
                # From here on the new groups serve: what is left is to remove the old ones.
                if beside and isinstance(step, Switch):
                    self._finish_upgrade(loaded, old, new)
        except Exception:
            if journal.restore is not None:
                await self._apply_gateway(journal.loaded)
                await self._roll_back(old)
            raise
        if journal.restore is not None:
            self._finish_upgrade(loaded, old, new)

    async def _apply_gateway(self, loaded: LoadedRecipe) -> None:
        if self._work.gateway is not None:
            await self._work.gateway.apply(loaded.recipe.gateway, self._work.secrets)

    async def _take(self, step: Step) -> None:
        self._record.note("command", describe(step))
        match step:
            case Start(specs):
                for spec in specs:
                    if self._work.gateway is not None:
                        self._work.gateway.hold_back(spec.name)
                await self._work.add(specs)
            case Confirm(groups):
                await self._await_verdict(groups)
            case Switch(groups):
                for name in groups:
                    if self._work.gateway is not None:
                        self._work.gateway.undrain(name)
            case Remove(groups):
                await self._work.remove([self._groups.find(name) for name in groups])

    async def _await_verdict(self, groups: tuple[str, ...]) -> None:
        """Wait until the command that ordered the upgrade has verified these groups.

        Raises:
            VerifyError: they did not pass, or no verdict came.
        """
        problem = await self._verdict.wait(groups)
        if problem:
            raise VerifyError(
                f"the new groups {', '.join(groups)} were refused",
                why=problem,
                evidence="\n".join([await self._keep_evidence(name, problem) for name in groups]),
            )

    async def _keep_evidence(self, name: str, problem: str) -> str:
        """Keep what a refused group leaves behind; return where, for people."""
        case = await self._groups.find(name).keep_evidence(f"refused: {problem}")
        if case.bundle is None:
            return f"no evidence of {name} was kept: {case.problem}"
        return f"evidence of {name}: {case.bundle}"

    async def _roll_back(self, specs: Sequence[GroupSpec]) -> None:
        """Remove the groups that are not among these, and start those that are missing."""
        self._record.note("command", "roll back")
        names = [spec.name for spec in specs]
        try:
            await self._work.remove([group for group in self._groups if group.name not in names])
        except NodeError as error:
            # What is left of a new group must not keep the old ones from serving.
            self._record.note("failure", f"{error.what}: {error.evidence}")
        missing = [spec for spec in specs if spec.name not in self._groups.by_name]
        await self._work.add(missing)
        self._work.sort(specs)
        self._record.journal.restore = None
        self._work.save_specs()

    async def _refuse_unfit(self, specs: Sequence[GroupSpec]) -> None:
        """Refuse groups that would not start in the place of the old ones, which still serve.

        Raises:
            ChecksFailedError: too few NPUs, or a check or the plan fails.
        """
        if not specs:
            return
        waived = next(iter(self._groups)).loop.settings.waived
        room = Room(self._groups.held_npus())
        problem = await find_problem(specs, self._deployment, room, waived)
        if problem:
            raise ChecksFailedError(
                f"nothing was changed: {problem}",
                why="the new groups would not start in the place of those that serve",
                todo="correct the recipe; `raylaunch check` shows what it needs",
            )

    def _finish_upgrade(
        self, loaded: LoadedRecipe, old: Sequence[GroupSpec], new: Sequence[GroupSpec]
    ) -> None:
        specs = kept_and_new(old, new)
        for spec, wanted in zip(specs, new, strict=True):
            self._groups.find(spec.name).apply(wanted.loaded)
        self._work.sort(specs)
        journal = self._record.journal
        journal.loaded = loaded
        journal.generation += 1
        journal.restore = None
        self._work.save_specs()


def _started(old: Sequence[GroupSpec], new: Sequence[GroupSpec]) -> list[GroupSpec]:
    """Return the groups of an upgrade that do not run yet."""
    kept = [spec.name for spec in kept_and_new(old, new)]
    return [spec for spec in new if spec.name in kept]
