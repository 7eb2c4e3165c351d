"""The verbs that change a running deployment: restart, scale, upgrade."""

from __future__ import annotations

from collections.abc import Callable

from raylaunch.api.deployment_verbs import attach, read_secrets, refuse_unsupported
from raylaunch.api.recipe_arguments import RecipeLike, Settings, load, settings_texts
from raylaunch.deployment import Deployment, OnUpdate
from raylaunch.errors import RaylaunchError
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
        on_update: Called with every new status.
        on_changes: Called with the settings and with the flags and variables of servers that
            differ, before anything is done.
        dry_run: Do nothing else.

    Raises:
        BusyError: another operation is under way.
        RecipeError: the recipe is wrong, or differs in what an upgrade cannot change.
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
    check = (lambda group: _problem_of(handle, group)) if verify_groups else None
    return handle.upgrade(wanted, secrets, on_update, check)


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
