"""Recipe + facts -> plan: the only place that decides flags, addresses, ports and variables."""

from __future__ import annotations

from collections.abc import Sequence

from raylaunch.errors import PlanError
from raylaunch.plan.deployment_plan import DeploymentPlan
from raylaunch.plan.environment import build_env, build_unset
from raylaunch.plan.facts import Facts
from raylaunch.plan.gateway_plan import plan_gateway
from raylaunch.plan.launch_plan import LaunchPlan, ServerPlan, Value
from raylaunch.plan.layout import Seat, bracket, choose_devices, lay_out, put_first, share_nodes
from raylaunch.plan.ports import PortChoice, choose_ports
from raylaunch.plan.serve_command import build_flags, model_path
from raylaunch.recipe.groups import GroupSpec, expand_groups
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
    """Resolve a recipe of one group on the given nodes. Arguments and errors: see `plan_group`.

    Raises:
        PlanError: The recipe has several groups.
    """
    group, *more = expand_groups(loaded)
    if more:
        raise PlanError(
            f"recipe {loaded.name} has {1 + len(more)} groups, and this plans one",
            todo="plan each of its groups, or set parallel.replicas=1",
        )
    return plan_group(group, nodes, deployment=deployment, primary=primary, others=others)


def plan_group(
    group: GroupSpec,
    nodes: Sequence[Facts],
    *,
    deployment: str = "",
    primary: str | None = None,
    others: Sequence[LaunchPlan] = (),
) -> LaunchPlan:
    """Resolve one group of a recipe on the given nodes.

    Args:
        group: The group, from `expand_groups`.
        nodes: One entry per server, or one per node that several servers share; the first is the
            primary.
        deployment: Name of the deployment; by default the recipe's.
        primary: Address of the node that shall be the primary instead of the first.
        others: Plans of the deployment's other groups, and of other deployments, on these nodes.
            Their ports are avoided, and their NPUs where the nodes do not name the granted ones.

    Raises:
        PlanError: The nodes cannot hold the recipe.
    """
    loaded = group.loaded
    name = deployment or loaded.name
    seats = lay_out(loaded.recipe, nodes, primary)
    unset = build_unset(loaded)
    ports = choose_ports(loaded, seats, others, name)
    # Only where there are several groups do their logs need folders of their own.
    folder = name if group.alone else f"{name}/{group.name}"
    servers = tuple(
        _plan_server(
            loaded,
            seat,
            seats[0],
            ports,
            choose_devices(loaded.recipe, seat, others),
            folder,
            unset,
        )
        for seat in seats
    )
    return LaunchPlan(
        deployment=name,
        recipe=loaded.name,
        platform=loaded.recipe.hardware.platform,
        served_name=loaded.recipe.model.served_name,
        model=model_path(loaded, seats[0]),
        endpoint=_endpoint(loaded.recipe, seats[0], ports),
        servers=servers,
        secrets=loaded.recipe.secrets,
        group=group.name,
        role=group.role,
    )


def build_deployment_plan(
    loaded: LoadedRecipe,
    nodes: Sequence[Facts],
    *,
    deployment: str = "",
    primary: str | None = None,
    others: Sequence[LaunchPlan] = (),
) -> DeploymentPlan:
    """Resolve every group of a recipe on the given nodes, one after the other, and the gateway.

    The first of the nodes is taken for Ray's head, where the gateway runs.

    Args:
        loaded: The recipe with the origins of its values.
        nodes: One entry per server of all groups, or one per node that several servers share.
        deployment: Name of the deployment; by default the recipe's.
        primary: Address of the node that shall be the primary of the first group.
        others: Plans of the other deployments on these nodes, whose ports are avoided.

    Raises:
        PlanError: The nodes cannot hold the recipe.
        RecipeError: See `expand_groups`.
    """
    groups = expand_groups(loaded)
    first = put_first(nodes, primary)
    plans: list[LaunchPlan] = []
    for group, own in zip(groups, share_nodes(groups, first), strict=True):
        around = (*others, *plans)
        plans.append(plan_group(group, own, deployment=deployment, others=around))
    gateway = plan_gateway(loaded.recipe.gateway, nodes[0], nodes, (*others, *plans))
    return DeploymentPlan(deployment or loaded.name, loaded.name, tuple(plans), gateway)


def _plan_server(
    loaded: LoadedRecipe,
    seat: Seat,
    primary: Seat,
    ports: PortChoice,
    devices: tuple[int, ...],
    folder: str,
    unset: dict[str, Value],
) -> ServerPlan:
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
        log=f"{folder}/attempt-{{attempt}}/server-{seat.index}.log",
        unset=unset,
    )


def _endpoint(recipe: Recipe, primary: Seat, ports: PortChoice) -> str:
    address = recipe.network.host
    if address in ("node", "0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        address = primary.place.ip
    return f"http://{bracket(address)}:{ports.http.number}/v1"
