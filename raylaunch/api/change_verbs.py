"""The verbs that change a running deployment: restart, scale, upgrade."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from raylaunch.api.deployment_verbs import attach, read_secrets, refuse_unsupported
from raylaunch.api.recipe_arguments import RecipeLike, Settings, load, settings_texts
from raylaunch.deployment import Deployment, OnUpdate
from raylaunch.deployment.kept_benchmarks import kept_runs
from raylaunch.errors import RaylaunchError, RecipeError
from raylaunch.plan.facts import Facts
from raylaunch.recipe.groups import expand_groups
from raylaunch.recipe.load import LoadedRecipe, change_recipe
from raylaunch.recipe.recipe_changes import Change, recipe_changes
from raylaunch.supervise.deployment_status import Status
from raylaunch.supervise.plan_changes import PlanChange, base_name, plan_changes

OnChanges = Callable[[list[Change], list[PlanChange]], None]


def restart(
    deployment: str, address: str | None = None, on_update: OnUpdate | None = None
) -> Status:
    """Restart a deployment, group after group, each drained before; return when all serve again.

    Args:
        deployment: Its name, or NAME/GROUP for one group.
        address: Ray cluster, as for `attach`.
        on_update: Called with every new status.

    Raises:
        BusyError: another operation is under way.
        RaylaunchError: a group failed; those that were to follow were not touched.
    """
    return attach(deployment, address).restart(on_update)


def scale(
    deployment: str,
    replicas: int,
    address: str | None = None,
    on_update: OnUpdate | None = None,
) -> Status:
    """Change the number of a deployment's equal groups; return when there are so many.

    Args:
        deployment: Its name.
        replicas: The number.
        address: Ray cluster, as for `attach`.
        on_update: Called with every new status.

    Raises:
        BusyError: another operation is under way.
        RecipeError: the groups of the recipe differ.
        RaylaunchError: a new group failed; the deployment stays as it was.
    """
    return attach(deployment, address).scale(replicas, on_update)


def upgrade(
    deployment: str,
    recipe: RecipeLike | None = None,
    *,
    set: Settings | None = None,  # noqa: A002 - named as on the command line
    address: str | None = None,
    verify_groups: bool = True,
    gate: str | None = None,
    on_update: OnUpdate | None = None,
    on_changes: OnChanges | None = None,
    dry_run: bool = False,
) -> Status:
    """Change the recipe of a running deployment; return when the new one is served.

    Groups whose servers do not change are not touched. If a new group fails, the old ones serve.

    Args:
        deployment: Its name.
        recipe: The new recipe; by default the one that runs.
        set: Changes to it.
        address: Ray cluster, as for `attach`.
        verify_groups: Verify each new group, as `verify` does, before it gets traffic.
        gate: "SCENARIO:+PERCENT%": benchmark each new group, too. It is refused if a request
            fails, mean TTFT or TPOT is higher, or output tokens/s are lower, by more than that
            percentage, than in the newest benchmark of a group that serves.
        on_update: Called with every new status.
        on_changes: Called with the settings and with the flags and variables of servers that
            differ, before anything is done.
        dry_run: Do nothing else.

    Raises:
        BusyError: another operation is under way.
        RecipeError: the recipe is wrong, or differs in what an upgrade cannot change; or the
            gate has no benchmark to compare with.
        PlanError: the servers cannot be laid out.
        RaylaunchError: a new group failed, or did not pass; the old ones serve.
    """
    handle = attach(deployment, address)
    running = handle.recipe()
    if recipe is None:
        wanted = change_recipe(running, settings_texts(set))
    else:
        wanted = load(recipe, set=set)
    refuse_unsupported(wanted)
    if on_changes is not None:
        on_changes(recipe_changes(running, wanted), _plan_changes(handle, running, wanted))
    if dry_run:
        return handle.status()
    secrets = read_secrets(wanted.recipe)
    checks: list[Callable[[str], str]] = []
    if verify_groups:
        checks.append(lambda group: _problem_of(handle, group))
    if gate is not None:
        checks.append(_gate_check(handle, wanted, gate))
    return handle.upgrade(wanted, secrets, on_update, _first_problem(checks))


def rotate_keys(
    deployment: str, names: Sequence[str] = (), address: str | None = None
) -> tuple[str, ...]:
    """Replace API keys that the gateway accepts, without a restart; return their names.

    The new values come from this environment and do not leave this process: the gateway gets their
    SHA-256. The keys of the servers behind it stay as they are.

    Args:
        deployment: Its name.
        names: Names in `gateway.api_keys`; by default all.
        address: Ray cluster, as for `attach`.

    Raises:
        RecipeError: the gateway has no key of such a name, or a value is not set.
        NodeError: the gateway does not take them; the old ones stay.
    """
    handle = attach(deployment, address)
    known = handle.recipe().recipe.gateway.api_keys
    chosen = tuple(names) or known
    unknown = [name for name in chosen if name not in known]
    if unknown or not known:
        raise RecipeError(
            f"{deployment} checks no API key {unknown[0]}"
            if unknown
            else f"{deployment} checks no API keys",
            why=f"gateway.api_keys of its recipe: {', '.join(known) or 'none'}",
            todo=f"`raylaunch upgrade {deployment} --set gateway.api_keys=[NAME]` changes the list",
        )
    missing = [name for name in chosen if not os.environ.get(name)]
    if missing:
        raise RecipeError(
            f"the new API key {missing[0]} is not set",
            why="its value is taken from the environment of this command",
            todo=f"export {missing[0]}=... and try again",
        )
    handle.rotate_keys({name: os.environ[name] for name in chosen})
    return chosen


def _plan_changes(
    handle: Deployment, running: LoadedRecipe, wanted: LoadedRecipe
) -> list[PlanChange]:
    """Compare the plans of both recipes on the nodes of the groups that run."""
    places = {
        base_name(group.name): [Facts(one.ip, interface=one.interface) for one in group.servers]
        for group in handle.status().groups
    }
    return plan_changes(expand_groups(running), expand_groups(wanted), places)


def _problem_of(handle: Deployment, group: str) -> str:
    """Return what is wrong with a new group, as a client sees it; "" for nothing."""
    try:
        found = Deployment(handle.name, group).verify()
    except RaylaunchError as error:
        return f"{group}: {error.what}"
    return "; ".join(f"{group}: {proof.check}: {proof.detail}" for proof in found.failed)


def _gate_check(handle: Deployment, wanted: LoadedRecipe, text: str) -> Callable[[str], str]:
    """Return what benchmarks a new group and names what is worse.

    Raises:
        RecipeError: there is no such scenario, or no benchmark to compare with.
    """
    from raylaunch.bench.gate import find_base, gate_problems, parse_gate
    from raylaunch.bench.scenario import choose

    gate = parse_gate(text)
    scenario = choose(gate.scenario, wanted.recipe.bench)
    created_at = {group.name: group.created_at for group in handle.status().groups}
    base = find_base(kept_runs(handle.name)[0], scenario, created_at)
    if base is None:
        raise RecipeError(
            f"--gate {text}: no benchmark of what runs to compare with",
            why=f"this machine keeps no run of {scenario.name} on a group that serves now",
            todo=f"`raylaunch bench {handle.name} --scenario {scenario.name}` measures it",
        )

    def find_problem(group: str) -> str:
        try:
            (run,) = Deployment(handle.name, group).bench(scenario.name)
        except RaylaunchError as error:
            return f"{group}: {error.what}"
        return "; ".join(f"{group}: {problem}" for problem in gate_problems(gate, base, run))

    return find_problem


def _first_problem(checks: Sequence[Callable[[str], str]]) -> Callable[[str], str]:
    def find_problem(group: str) -> str:
        # A benchmark of a group that answers wrongly would only take time.
        return next(filter(None, (check(group) for check in checks)), "")

    return find_problem
