"""Where recipes are stored: the shipped ones in configs/, and the user's own files by path."""

from __future__ import annotations

import difflib
import os
from functools import partial
from pathlib import Path

from raylaunch.errors import RecipeError
from raylaunch.recipe.load import Finder, LoadedRecipe, load_recipe, read_chain, read_fallback_files
from raylaunch.recipe.yaml_reader import shorten


def configs_dir() -> Path:
    """Return the folder of shipped recipes: in the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "configs"
    return shipped if shipped.is_dir() else package.parent / "configs"


def recipe_names(configs: Path | None = None) -> list[str]:
    """Return the names of the shipped recipes, sorted."""
    return sorted(path.stem for path in (configs or configs_dir()).glob("*.yaml"))


def read(name: str, sets: tuple[str, ...] | list[str] = ()) -> LoadedRecipe:
    """Load a shipped recipe by name, or a recipe file by path, with `--set` assignments.

    Raises:
        RecipeError: See `raylaunch.recipe.load.load_recipe`.
    """
    return load_recipe(name, finder(configs_dir()), sets)


def files_of(name: str) -> tuple[str, dict[str, Path]]:
    """Return what another machine with this raylaunch needs to read the recipe `name`.

    Returns:
        The recipe's name there, relative to a folder of the files, and the user's files by their
        path in that folder. A shipped recipe needs no files.

    Raises:
        RecipeError: See `raylaunch.recipe.load.read_chain`.
    """
    if not _is_path(name):
        return name, {}
    find = finder(configs_dir())
    chain = read_chain(name, find)
    others = [path for path, _ in chain[1:]] + read_fallback_files(chain, find)
    own = [chain[0][0], *(path for path in others if not path.is_relative_to(configs_dir()))]
    root = os.path.commonpath([path.parent for path in own])
    files = {str(path.relative_to(root)): path for path in own}
    return next(iter(files)), files


def finder(configs: Path) -> Finder:
    """Return a function that finds recipe files.

    A path is used as it is; a bare name is searched beside the recipe that extends it, then in
    `configs`.
    """
    return partial(_find, configs)


def _find(configs: Path, name: str, beside: Path | None) -> Path:
    if _is_path(name):
        path = beside / name if beside else Path(name)
        if _is_file(path):
            return path.resolve()
        raise RecipeError(
            f"there is no recipe file {shorten(str(path))}",
            todo="check the path; `raylaunch list` shows the names",
        )
    for folder in (beside, configs):
        if folder is None:
            continue
        path = folder / f"{name}.yaml"
        if _is_file(path):
            return path.resolve()
    raise _unknown(name, recipe_names(configs))


def _is_file(path: Path) -> bool:
    """Return whether `path` is a file; a name that no file can have is a problem to report.

    Raises:
        RecipeError: The system refuses the path (a name over 255 bytes, a folder that may not be
            searched).
    """
    try:
        return path.is_file()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RecipeError(
            f"recipe {shorten(str(path))} cannot be read",
            why=str(reason),
            todo="give the path of a recipe file; a file name has at most 255 bytes",
        ) from error


def _is_path(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) or "/" in name


def _unknown(name: str, known: list[str]) -> RecipeError:
    # Similarity is quadratic in the length of the names.
    close = difflib.get_close_matches(name[:100], known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return RecipeError(
        f"there is no recipe named {shorten(name)!r}",
        why=f"{hint}known: {', '.join(known)}",
        todo="use one of them, or give the path of a .yaml file",
    )
