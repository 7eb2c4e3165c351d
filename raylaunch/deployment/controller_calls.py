"""The calls of a deployment's controller that the handle needs, with their types."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from raylaunch.supervise.deployment_status import Event, Status, StopReport

if TYPE_CHECKING:
    from raylaunch.plan.launch_plan import LaunchPlan
    from raylaunch.recipe.load import LoadedRecipe

CALL_TIMEOUT_S = 90.0


class ControllerCalls:
    """One method per call, named as the controller's own."""

    def __init__(self, actor: Any) -> None:  # noqa: ANN401 - Ray's handle has no type
        self._actor = actor

    def status(self) -> Status:
        """Return where the deployment is now."""
        status: Status = self._ask("status")
        return status

    def wait_change(self, version: int, timeout_s: float) -> tuple[int, Status]:
        """Return the status as soon as it is newer than `version`, or after `timeout_s`."""
        answer: tuple[int, Status] = self._ask("wait_change", version, timeout_s)
        return answer

    def events(self, after: int = 0) -> list[Event]:
        """Return the events newer than number `after`."""
        events: list[Event] = self._ask("events", after)
        return events

    def read_log(
        self,
        server: int,
        cursor: Any,  # noqa: ANN401 - the runtime's type
        lines: int | None,
        timeout_s: float,
    ) -> Any:  # noqa: ANN401
        """Return a piece of a server's log; None when its agent is lost."""
        return self._ask("read_log", server, cursor, lines, timeout_s)

    def describe(self) -> tuple[LoadedRecipe, LaunchPlan | None, dict[int, dict[str, str]]]:
        """Return the recipe, its plan, and the versions installed on each server's node."""
        answer: tuple[LoadedRecipe, LaunchPlan | None, dict[int, dict[str, str]]]
        answer = self._ask("describe")
        return answer

    def stop(self, on_update: Callable[[Status], None] | None = None) -> StopReport:
        """Stop every server, then the controller itself."""
        from raylaunch.runtime.controller.controller_client import stop_controller

        return stop_controller(self._actor, on_update)

    def _ask(self, question: str, *args: object) -> Any:  # noqa: ANN401 - what the method returns
        from raylaunch.runtime.controller.controller_client import ask

        return ask(self._actor, question, *args, timeout_s=CALL_TIMEOUT_S)
