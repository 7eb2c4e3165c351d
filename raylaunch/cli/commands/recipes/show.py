"""The verb `show`: a whole recipe, each value with its origin."""

from __future__ import annotations

import typer

from raylaunch.cli.command import command
from raylaunch.cli.options import RecipeFormat, RecipeName, RecipeOutput, Sets
from raylaunch.cli.output import Output


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
    command(
        app,
        examples="""
        raylaunch show a2-dual
        raylaunch show a3-long-context --set args.max-num-seqs=8
        raylaunch show a2-dual > mine.yaml      # a recipe of your own to change
        """,
    )(show)


def show(
    out: Output,
    name: RecipeName,
    sets: Sets = None,
    output: RecipeOutput = RecipeFormat.YAML,
) -> None:
    """Print a recipe and where each value is from, without secrets."""
    from raylaunch.checks.secret_checks import mask_recipe
    from raylaunch.cli.views.recipe_view import yaml_lines
    from raylaunch.recipe.catalog import read

    loaded = read(name, sets or [])
    if output is RecipeFormat.JSON:
        values = mask_recipe(loaded.recipe.model_dump(mode="json"))
        return out.json({"name": loaded.name, "recipe": values, "origins": dict(loaded.origins)})
    return out.lines(yaml_lines(loaded))
