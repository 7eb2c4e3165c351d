"""What would go wrong, before anything is launched: all findings, not the first.

Each check is a small generator of its own: those on the recipe alone live in `recipe_checks` and
`variable_checks`, those on what a probe saw in `node_checks` (one machine), `gang_checks` (the machines together) and
`link_checks` (the NPUs' own network). What machines and NPUs said to each other is judged by `reach_checks` and
`ping_checks`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raylaunch.checks.board_checks import check_boards, check_image
from raylaunch.checks.check_context import look
from raylaunch.checks.findings import Finding
from raylaunch.checks.flag_checks import FLAG_CHECKS
from raylaunch.checks.group_checks import GANG_CHECKS
from raylaunch.checks.link_checks import LINK_CHECKS
from raylaunch.checks.network_checks import NETWORK_CHECKS
from raylaunch.checks.node_checks import NODE_CHECKS
from raylaunch.checks.port_checks import PORT_CHECKS
from raylaunch.checks.recipe_checks import RECIPE_CHECKS, check_flags, check_flashcomm1
from raylaunch.checks.variable_checks import VARIABLE_CHECKS, check_dead_env
from raylaunch.checks.weight_checks import WEIGHT_CHECKS
from raylaunch.plan.facts import Facts
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.recipe.recipe_settings import Versions

_SEEN_CHECKS = (
    *(
        *NODE_CHECKS,
        *WEIGHT_CHECKS,
        *GANG_CHECKS,
        *PORT_CHECKS,
        *NETWORK_CHECKS,
        *LINK_CHECKS,
        *FLAG_CHECKS,
    ),
    check_boards,
)


def check_recipe(
    loaded: LoadedRecipe, versions: Versions, *, flags_asked: bool = False
) -> Iterator[Finding]:
    """Yield what is wrong with the recipe itself.

    `versions` are those of the nodes (`Facts.versions`), empty while they are not known: a check that depends on a
    version then assumes the one it matters for. With `flags_asked` every node's own vLLM said which flags it knows
    (`Facts.known_flags`): then `check_nodes` judges by that, and raylaunch's list does not count.
    """
    for check in (*RECIPE_CHECKS, *VARIABLE_CHECKS, check_image):
        yield from check(loaded)
    for versioned in (check_flashcomm1, check_dead_env, *(() if flags_asked else (check_flags,))):
        yield from versioned(loaded, versions)


def check_nodes(
    loaded: LoadedRecipe,
    nodes: Sequence[Facts],
    plan: LaunchPlan,
    others: Sequence[LaunchPlan] = (),
) -> Iterator[Finding]:
    """Yield what is wrong with the nodes for this plan.

    `nodes` are those the plan was built from, `others` the plans of the cluster's other deployments. What was not
    probed is not judged; a probe that failed is a finding. Two servers on one machine see the same things: each is said
    once.
    """
    view = look(loaded, nodes, plan, others)
    yield from dict.fromkeys(finding for check in _SEEN_CHECKS for finding in check(view))
