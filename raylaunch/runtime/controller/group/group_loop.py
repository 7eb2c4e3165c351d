"""The loop of one group of servers: observe, decide, act.

`supervise.policy` decides; this module carries the decisions out, one `step()` at a time. All that
it touches is injected (the cluster, the evidence, clock and jitter), so a test drives it without
Ray. It knows nothing of a deployment's commands: it is ordered to stop, or to give up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from raylaunch.checks.findings import Finding, waive
from raylaunch.errors import (
    BusyError,
    ChecksFailedError,
    LaunchError,
    PlacementError,
    PlanError,
    RaylaunchError,
    RecipeError,
    from_dict,
)
from raylaunch.plan.facts import Facts
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.runtime.cluster.clock import Clock
from raylaunch.runtime.controller.group.adoption import Adoption
from raylaunch.runtime.controller.group.evidence import Case
from raylaunch.runtime.controller.group.group_backend import (
    Evidence,
    GroupBackend,
    GroupSettings,
    GroupStopped,
    SecretsLostError,
)
from raylaunch.runtime.controller.group.group_report import as_raylaunch_error, explain_failure
from raylaunch.runtime.controller.group.journal import EventNumbers, GroupRecord, Journal
from raylaunch.runtime.controller.group.orders import Orders
from raylaunch.runtime.controller.group.planning import refuse_errors
from raylaunch.runtime.controller.group.recovery import COMMAND, FAILED_GRACE_S, Recovery
from raylaunch.supervise import policy
from raylaunch.supervise.diagnosis.root_cause import Diagnosis
from raylaunch.supervise.state import Phase, ServerSeen

log = logging.getLogger(__name__)

PAUSE_S = 3.0
"""A loop that wakes up this much too late was not running itself (SIGSTOP, a starved host)."""
FINAL = (PlacementError, BusyError, SecretsLostError)
"""Not retried: a reservation has waited for nodes already, a name stays taken, and secrets stay
lost."""
REFUSALS = (ChecksFailedError, PlanError, RecipeError)
"""Not retried at the first start: the same again. Later, they may come from a restart's debris."""


class GroupLoop:
    """Supervises one group.

    Args:
        settings: Names, thresholds and grace periods.
        backend: The cluster.
        evidence: Examines failed attempts.
        clock: Ages and deadlines are monotonic, times in the journal are for display.
        jitter: Draws a number from 0 to 1 for each back-off.
        on_change: Called after each change of `record`.
        numbers: Numbers the events of all groups of the deployment.
    """

    def __init__(
        self,
        settings: GroupSettings,
        backend: GroupBackend,
        evidence: Evidence,
        clock: Clock,
        jitter: Callable[[], float],
        on_change: Callable[[], None],
        numbers: EventNumbers | None = None,
    ) -> None:
        self.record = GroupRecord(
            settings.name, clock, backend.keep_journal, self._wake_up, numbers
        )
        self.recovery = Recovery(settings, self.record, backend, clock)
        self.adoption = Adoption(settings, self.record, backend, clock)
        self.last_step_at = clock.monotonic()
        self.settings = settings
        self.secrets: Mapping[str, str] = {}
        self._backend = backend
        self._evidence = evidence
        self._clock = clock
        self._jitter = jitter
        self._report_change = on_change
        self._begun = asyncio.Event()
        self._facts: dict[int, Facts] = {}
        self._case = Case()
        self._wake = asyncio.Event()
        self.orders = Orders()
        self._finished = asyncio.Event()
        self._stopped: GroupStopped | BaseException | None = None

    @property
    def _journal(self) -> Journal:
        return self.record.journal

    # -- orders --------------------------------------------------------------------------------

    def begin(self, secrets: Mapping[str, str]) -> None:
        """Hand over the secrets; until then nothing but the reservation is made."""
        self.secrets = secrets
        self._begun.set()

    def resume(
        self, journal: Journal, secrets: Mapping[str, str], seen: Mapping[int, ServerSeen]
    ) -> None:
        """Continue a group whose controller died; running servers are observed, not touched."""
        self.record.journal = journal
        self.begin(secrets)
        if journal.plan is not None:
            self.record.shape = policy.GroupShape.of(journal.plan)
        found = len(self._backend.servers)
        self.record.note("adopted", f"a restarted controller found {found} agents")
        if journal.phase in (Phase.STARTING, Phase.READY):
            assert journal.plan is not None, "nothing is launched without a plan"
            self.record.seen = dict(seen)
            self._backend.watch(journal.plan, self.record.observe)
        elif journal.phase is Phase.STOPPING:
            self.request_stop()

    def request_stop(self) -> None:
        """Interrupt the current step and stop the group for good; see `stopped`."""
        self.orders.stop()

    def abandon(self, error: RaylaunchError) -> None:
        """Interrupt the current step and let the group fail with `error`."""
        self.orders.abandon(error)

    async def stopped(self) -> GroupStopped:
        """Wait for the end of a requested stop.

        Raises:
            Exception: the stop failed, as `fail_stop` was told.
        """
        await self._finished.wait()
        if isinstance(self._stopped, BaseException):
            raise self._stopped
        assert self._stopped is not None
        return self._stopped

    def fail_stop(self, error: BaseException) -> None:
        """Report to those who wait for the stop that it does not succeed."""
        self._stopped = error
        self._finished.set()

    @property
    def can_be_drilled(self) -> bool:
        """Whether the group is ready, with no command or failure under way."""
        is_busy = self.orders.are_pending or bool(self.adoption.orphans)
        return self._journal.phase is Phase.READY and not is_busy

    @property
    def is_stopped(self) -> bool:
        """Whether nothing is left to do."""
        return self._journal.phase is Phase.STOPPED

    @property
    def must_step(self) -> bool:
        """Whether each step is short: it supervises, and waits for nothing of long duration."""
        return self._journal.phase in (Phase.STARTING, Phase.READY)

    def _wake_up(self) -> None:
        self._wake.set()
        self._report_change()

    # -- the loop ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Step until the group is stopped."""
        while not self.is_stopped:
            await self.step()

    async def step(self) -> None:
        """Do one step. Whatever fails in it is a failure of the group, which the policy judges."""
        self.last_step_at = self._clock.monotonic()
        if self.orders.stop_requested:
            await self._finish()
            return
        if (error := self.orders.take_abandon()) is not None:
            await self._fail(error)
            return
        if self.orders.take_restart():
            self._restart_on_order()
            return
        work = {
            Phase.PENDING: self._reserve,
            Phase.CHECKING: self._check,
            Phase.STARTING: self._supervise,
            Phase.READY: self._supervise,
            Phase.RESTARTING: self._rebuild,
            Phase.FAILED: self.orders.wait,
        }
        try:
            await self.orders.interrupt(work[self._journal.phase]())
        except Exception as raised:  # noqa: BLE001 - a bug costs one restart, not the service
            await self._judge_error(raised)

    async def _reserve(self) -> None:
        await self.recovery.reserve()
        await self._begun.wait()
        self.record.enter(Phase.CHECKING)

    async def _rebuild(self) -> None:
        await self.recovery.rebuild()
        self.record.enter(Phase.CHECKING)

    async def _check(self) -> None:
        self._facts = await self._backend.probe()
        self._journal.versions = {index: facts.versions for index, facts in self._facts.items()}
        for index in self._facts:
            seen = self.record.seen.get(index, ServerSeen(index))
            self.record.observe(replace(seen, stage="probed"))
        plan, findings = await self._backend.plan(self._facts)
        self._journal.plan = plan
        self._journal.findings = tuple(waive(findings, self.settings.waived))
        for server, facts in zip(plan.servers, self._facts.values(), strict=True):
            self._journal.ray_addresses[server.node.ip] = facts.ip
        self.record.shape = policy.GroupShape.of(plan)
        refuse_errors(self._journal.findings)
        self.record.enter(Phase.STARTING)
        await self._launch(plan)

    async def _launch(self, plan: LaunchPlan) -> None:
        attempt = self.record.begin_attempt(self._backend.servers)
        self._backend.watch(plan, self.record.observe)
        self.record.note("command", f"launched attempt {attempt}")
        await self._backend.launch(plan, attempt, self._facts, self.secrets)
        if attempt == 1:
            self._backend.dry_run(plan, self._facts, self._note_dry_run)

    def _note_dry_run(self, findings: list[Finding]) -> None:
        self.record.add_findings(waive(findings, self.settings.waived))

    async def _supervise(self) -> None:
        """Observe, decide, act: once."""
        if await self.adoption.step() and not self.secrets:
            # This controller took over while there was no agent to hand them out.
            self.secrets = await self._backend.read_secrets()
            self._report_change()
        now = self._clock.monotonic()
        servers = self.adoption.judged()
        history = self.record.judged_history()
        health = self.settings.health
        failure = policy.find_failure(
            self._journal.phase, servers, history, health, now, gang=self.record.shape
        )
        if failure is not None:
            await self._judge_failure(failure)
            return
        decision = policy.decide(
            self._journal.phase, servers, history, health, now, gang=self.record.shape
        )
        if isinstance(decision, policy.BecomeReady):
            self._journal.became_ready(now)
            self.record.enter(Phase.READY)
            self._backend.remember_flags()
        elif isinstance(decision, policy.Wait):
            await self._wait_until(decision.until)

    async def _wait_until(self, until: float) -> None:
        await self._clock.wait(self._wake, until - self._clock.monotonic())
        self._wake.clear()
        now = self._clock.monotonic()
        if now - until < PAUSE_S:
            return
        # The agents may have reported all the while; what was heard last proves nothing. Each
        # gets its full time again.
        log.warning("the controller was paused for %.1f s", now - until)
        for index, seen in self.record.seen.items():
            if seen.agent_at is not None:
                self.record.seen[index] = replace(seen, agent_at=now)

    # -- failures ------------------------------------------------------------------------------

    async def _judge_failure(self, failure: policy.FailureSeen) -> None:
        """Freeze the evidence, have it diagnosed, and do what the policy decides."""
        self.record.note_failure(failure)
        self._case = await self._evidence.examine(self._journal, self.record.seen)
        diagnosis = self._case.complete_diagnosis(failure)
        root = failure.root if diagnosis.root is None else diagnosis.root
        self.record.note_diagnosis(diagnosis, root)
        await self._evidence.keep(self._case, self._journal, self.record.seen)
        if self._case.problem:
            self.record.note("bundle-failed", self._case.problem)
        self.record.shape = replace(self.record.shape, spare=await self.recovery.has_spare())
        decision = self._decide_on(failure, diagnosis)
        if isinstance(decision, policy.GiveUp):
            await self._fail(explain_failure(decision, self._case, self.record.shape.nodes))
        elif isinstance(decision, policy.Restart):
            self._restart(decision)

    async def _judge_error(self, error: Exception) -> None:
        """Let the policy decide after a step that raised: a second fault is a failure like any."""
        known = as_raylaunch_error(error)
        if not isinstance(error, RaylaunchError):
            log.error("a step of group %s failed", self.settings.name, exc_info=error)
        if self._is_final(error):
            await self._fail(known)
            return
        if isinstance(error, RaylaunchError):
            failure = policy.FailureSeen("step-failed", None, error.what)
        else:
            failure = policy.internal_failure(f"{type(error).__name__}: {error}")
        self.record.note_failure(failure)
        decision = self._decide_on(failure, None)
        if isinstance(decision, policy.Restart):
            # A LaunchError comes from agents that answer. NPUs that are released for nothing may
            # be taken by another deployment.
            in_restart = self._journal.phase is Phase.RESTARTING
            suspect = in_restart and not isinstance(error, LaunchError)
            self._restart(decision, reservation_is_suspect=suspect)
        elif isinstance(decision, policy.GiveUp):
            why = "; ".join(part for part in (known.why, decision.reason) if part)
            await self._fail(from_dict({**known.as_dict(), "why": why}))

    def _is_final(self, error: Exception) -> bool:
        if isinstance(error, REFUSALS):
            return not self._journal.served
        return isinstance(error, FINAL)

    def _decide_on(
        self, failure: policy.FailureSeen, diagnosis: Diagnosis | None
    ) -> policy.Decision:
        return policy.decide_on_failure(
            failure,
            self._journal.phase,
            self.record.judged_history(),
            self.settings.health,
            self._clock.monotonic(),
            gang=self.record.shape,
            diagnosis=diagnosis,
            jitter=self._jitter(),
        )

    def _restart(self, decision: policy.Restart, *, reservation_is_suspect: bool = False) -> None:
        self.record.remember(decision)
        self._journal.restarts += 1
        self.recovery.begin(decision, reservation_is_suspect=reservation_is_suspect)
        self.record.note("restart", f"{decision.cause}: {decision.reason}", decision.root)
        # A step that failed before the first plan, or in a restart, is done again.
        if self._journal.phase not in (Phase.PENDING, Phase.RESTARTING):
            self.record.enter(Phase.RESTARTING)

    def _restart_on_order(self) -> None:
        """Begin the next attempt, with a new restart budget; a pending group is on its way."""
        self.record.note("command", "restart")
        self._journal.error = None
        self.record.forget_failures()
        now = self._clock.monotonic()
        decision = policy.Restart(COMMAND, COMMAND, None, not_before=now, reason="ordered")
        if self._journal.phase is Phase.RESTARTING:
            self.recovery.hurry(decision)
        elif self._journal.phase is not Phase.PENDING:
            self.recovery.begin(decision, reservation_is_suspect=False)
            self.record.enter(Phase.RESTARTING)

    # -- the end -------------------------------------------------------------------------------

    async def _fail(self, error: RaylaunchError) -> None:
        """Stop every server and release the NPUs; the loop stays, so that `status` can say why."""
        if self._journal.phase is Phase.FAILED:
            return
        self._journal.error = error.as_dict()
        self.record.note("failure", error.what)
        log.error("group %s failed: %s", self.settings.name, error)
        self.recovery.drop_lost_agents()
        await self._backend.stop_servers(FAILED_GRACE_S)
        try:
            self._backend.release()
        except Exception:
            # `stop` releases once more. The decision to give up stands.
            log.exception("the NPUs of group %s could not be released", self.settings.name)
        self.recovery.forget()
        self.record.enter(Phase.FAILED)

    async def _finish(self) -> None:
        if self._journal.phase is not Phase.STOPPING:  # it may already be: a stop is resumed
            self.record.enter(Phase.STOPPING)
        running = [
            one for one in self.record.seen.values() if one.pid is not None and one.exit is None
        ]
        self.recovery.drop_lost_agents()
        left = await self._backend.stop_servers(self.settings.stop_grace_s)
        for index, node in self.record.unreachable.items():
            if not any(line.startswith(f"server {index}: ") for line in left):
                left.append(f"server {index}: {node} cannot be reached")
        self._backend.release()
        self.record.enter(Phase.STOPPED)
        self._stopped = GroupStopped(len(running), tuple(left))
        self._finished.set()
