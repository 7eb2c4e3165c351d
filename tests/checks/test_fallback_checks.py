"""A fallback that is wrong is found before a node is lost, and does not keep the recipe from its start."""

from __future__ import annotations

from raylaunch.api import recipe_verbs
from raylaunch.checks.check_all import check_fallback_recipes
from raylaunch.recipe.catalog import read


def found(entry: str):
    return list(check_fallback_recipes(read("a2-dual", [f"fallback=[{entry}]"]), {}))


def test_a_fallback_is_mentioned_with_its_time():
    (finding,) = found("{set: {parallel.data: 1}}")
    assert (finding.id, finding.level) == ("fallback", "info")
    assert finding.what == (
        "while a node is lost, the recipe itself with parallel.data=1 serves after 120 s"
    )
    assert list(check_fallback_recipes(read("a2-dual"), {})) == []


def test_a_fallback_that_would_be_refused_is_a_warning_with_its_id():
    _, finding = found("{set: {parallel.data: 1, parallel.tensor: 16}}")
    assert (finding.id, finding.level) == ("fallback-refused", "warning")
    assert finding.what.startswith("the fallback the recipe itself with parallel.data=1, parallel")
    assert finding.what.endswith("[cross-node-tp]")


def test_the_plan_of_a_recipe_mentions_its_fallbacks():
    hosts = ["192.0.2.10%eth0", "192.0.2.11%eth0"]
    settings = {"fallback": [{"set": {"parallel.data": 1}}]}
    _, _, findings = recipe_verbs.make_plan("a2-dual", hosts=hosts, set=settings)
    assert "fallback" in [finding.id for finding in findings]
