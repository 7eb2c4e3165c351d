"""Recipe + facts -> plan: the only place that decides flags, addresses, ports and variables."""

from __future__ import annotations

from collections.abc import Sequence

from raylaunch.plan.environment import build_env, build_unset
from raylaunch.plan.facts import Facts
from raylaunch.plan.launch_plan import LaunchPlan, ServerPlan, Value
from raylaunch.plan.layout import Seat, bracket, choose_devices, lay_out
from raylaunch.plan.ports import PortChoice, choose_ports
from raylaunch.plan.serve_command import build_flags, model_path
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.recipe.model import Recipe


def build_plan(
    loaded: LoadedRecipe,
    nodes: Sequence[Facts],
    *,
    deployment: str = "",
    primary: str | None = None,
    others: Sequence[LaunchPlan] = (),
) -> LaunchPlan:
    """Resolve a recipe on the given nodes.

    Args:
        loaded: The recipe with the origins of its values.
        nodes: One entry per server, or one per node that several servers share; the first is the primary.
        deployment: Name of the deployment; by default the recipe's.
        primary: Address of the node that shall be the primary instead of the first.
        others: Plans of the other deployments on these nodes, whose ports are avoided.

    Raises:
        PlanError: The nodes cannot hold the recipe.
    """
    seats = lay_out(loaded.recipe, nodes, primary)
    unset = build_unset(loaded)
    name = deployment or loaded.name
    ports = choose_ports(loaded, seats, others)
    servers = tuple(_plan_server(loaded, seat, seats[0], ports, name, unset) for seat in seats)
    return LaunchPlan(
        deployment=name,
        recipe=loaded.name,
        platform=loaded.recipe.hardware.platform,
        served_name=loaded.recipe.model.served_name,
        model=model_path(loaded, seats[0]),
        endpoint=_endpoint(loaded.recipe, seats[0]),
        servers=servers,
        secrets=loaded.recipe.secrets,
    )


def _plan_server(
    loaded: LoadedRecipe,
    seat: Seat,
    primary: Seat,
    ports: PortChoice,
    deployment: str,
    unset: dict[str, Value],
) -> ServerPlan:
    devices = choose_devices(loaded.recipe, seat)
    local = loaded.recipe.parallel.ranks_per_server
    first = seat.index * local
    return ServerPlan(
        index=seat.index,
        ranks=tuple(range(first, first + local)),
        role="headless" if seat.index else "primary",
        node=seat.place,
        devices=devices,
        env=build_env(loaded, seat, ports, devices),
        flags=build_flags(loaded, seat, primary, ports),
        ports=ports.at(seat.slot),
        log=f"{deployment}/attempt-{{attempt}}/server-{seat.index}.log",
        unset=unset,
    )


def _endpoint(recipe: Recipe, primary: Seat) -> str:
    address = recipe.network.host
    if address in ("node", "0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        address = primary.place.ip
    return f"http://{bracket(address)}:{recipe.network.http_port}/v1"
