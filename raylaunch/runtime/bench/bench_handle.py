"""The typed boundary to the benchmark actor: create it, call it, kill it.

Every method raises as `RemoteActor.ask` does: what the actor itself raised on purpose, or an
`ActorError` when no answer came.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from raylaunch.bench.bench_output import BenchProgress
from raylaunch.errors import BusyError, ClusterError
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.runtime.bench.bench_actor import BenchActor, BenchExit, BenchLaunch
from raylaunch.runtime.cluster.connection import NAMESPACE
from raylaunch.runtime.cluster.packaging import packaged
from raylaunch.runtime.cluster.remote_call import RemoteActor

CALL_TIMEOUT_S = 120.0
"""A new actor answers only after its worker process has started and imported the code."""
STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class BenchActorHandle:
    """Calls the benchmark actor of one deployment."""

    remote: RemoteActor[BenchActor]

    def launch(
        self, *, argv: tuple[str, ...], seed: int, prompts: int, api_key: str
    ) -> BenchLaunch:
        """Call `BenchActor.launch`."""
        call = self.remote.ask(BenchActor.launch, timeout_s=CALL_TIMEOUT_S)
        return call(argv=argv, seed=seed, prompts=prompts, api_key=api_key)

    def watch(self, *, wait_s: float) -> tuple[BenchProgress, bool]:
        """Call `BenchActor.watch`, a long poll of at most `wait_s`."""
        call = self.remote.ask(BenchActor.watch, timeout_s=wait_s + CALL_TIMEOUT_S)
        return call(wait_s=wait_s)

    def read_exit(self) -> BenchExit:
        """Call `BenchActor.read_exit`."""
        return self.remote.ask(BenchActor.read_exit, timeout_s=CALL_TIMEOUT_S)()

    def stop(self) -> None:
        """Call `BenchActor.stop`."""
        self.remote.ask(BenchActor.stop, timeout_s=STOP_TIMEOUT_S)()

    def kill(self) -> None:
        """Kill the actor process. The guard of its benchmark then terminates the benchmark."""
        self.remote.kill()


@contextmanager
def bench_actor(plan: LaunchPlan, attempt: int) -> Iterator[BenchActorHandle]:
    """Create the actor on the primary's node; stop and kill it at the end of the block.

    Ray kills it if this process exits before that.

    Raises:
        BusyError: another command runs a benchmark of this deployment.
    """
    handle = BenchActorHandle(_create(plan, attempt))
    try:
        yield handle
    finally:
        try:
            handle.stop()
        except ClusterError:
            # Lost or late: the guard terminates the benchmark when the actor is gone.
            pass
        finally:
            handle.kill()


def _create(plan: LaunchPlan, attempt: int) -> RemoteActor[BenchActor]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    on_primary = NodeAffinitySchedulingStrategy(plan.primary.node.node_id, soft=False)
    options = ray.remote(packaged(BenchActor)).options(
        name=f"bench:{plan.deployment}",
        namespace=NAMESPACE,
        num_cpus=0,
        # A restarted actor would not know its benchmark, and the guard has terminated that.
        max_restarts=0,
        scheduling_strategy=on_primary,
    )
    try:
        actor = options.remote(plan.deployment, plan, attempt)
    except ValueError as error:  # Ray: the name is in use
        raise BusyError(
            f"another command runs a benchmark of {plan.deployment}",
            why="two benchmarks at the same time measure each other",
            todo="try again when it has finished",
        ) from error
    return RemoteActor(actor, f"the benchmark actor of {plan.deployment}")
