"""Where recipes live: the shipped ones in configs/, and the user's own files by path."""

from __future__ import annotations

import difflib
import os
from functools import partial
from pathlib import Path

import yaml

from raylaunch.errors import RecipeError
from raylaunch.recipe.load import Finder, LoadedRecipe, load_recipe


def configs_dir() -> Path:
    """The folder of shipped recipes: inside the wheel, or beside the package in a source checkout."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "configs"
    return shipped if shipped.is_dir() else package.parent / "configs"


def recipe_names(configs: Path | None = None) -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(path.stem for path in (configs or configs_dir()).glob("*.yaml"))


def read(name: str, sets: tuple[str, ...] | list[str] = ()) -> LoadedRecipe:
    """Load a shipped recipe by name, or a recipe file by path, with `--set` assignments.

    Raises:
        RecipeError: see `raylaunch.recipe.load.load_recipe`.
    """
    return load_recipe(name, finder(configs_dir()), sets)


def files_of(name: str) -> tuple[str, dict[str, Path]]:
    """What another machine with this raylaunch needs to read the recipe `name`: its name there, and the user's files.

    Returns:
        The name, relative to a folder of the files; the files by their path in it. None for a shipped recipe.
    """
    find = finder(configs_dir())
    if not _is_path(name):
        return name, {}
    chain = [find(name, None)]
    while base := yaml.safe_load(chain[-1].read_text(encoding="utf-8")).get("extends"):
        chain.append(find(str(base), chain[-1].parent))
    own = [path for path in chain if path is chain[0] or not path.is_relative_to(configs_dir())]
    root = os.path.commonpath([path.parent for path in own])
    files = {str(path.relative_to(root)): path for path in own}
    return next(iter(files)), files


def finder(configs: Path) -> Finder:
    """Return a function that finds recipe files: a path as it is, a bare name beside the asker, then in `configs`."""
    return partial(_find, configs)


def _find(configs: Path, name: str, beside: Path | None) -> Path:
    if _is_path(name):
        path = (beside or Path()) / name if beside else Path(name)
        if path.is_file():
            return path.resolve()
        raise RecipeError(
            f"there is no recipe file {path}",
            todo="check the path; `raylaunch list` shows the names",
        )
    for folder in (beside, configs):
        if folder and (folder / f"{name}.yaml").is_file():
            return (folder / f"{name}.yaml").resolve()
    raise _unknown(name, recipe_names(configs))


def _is_path(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) or "/" in name


def _unknown(name: str, known: list[str]) -> RecipeError:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return RecipeError(
        f"there is no recipe named {name!r}",
        why=f"{hint}known: {', '.join(known)}",
        todo="use one of them, or give the path of a .yaml file",
    )
