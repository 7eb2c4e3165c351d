"""The cluster a recipe runs on: a file for Ray's own launcher (`ray up`, provider `local`), ready to be edited."""

from __future__ import annotations

import ipaddress
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from raylaunch.errors import PlanError, RecipeError
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.recipe.model import Recipe
from raylaunch.render.container import image, run_options

RAY = "2.60"
"""The Ray that raylaunch drives: all nodes need this one."""

FIXED_PORTS = {
    "port": 6379,
    "node-manager-port": 6380,
    "object-manager-port": 6381,
    "runtime-env-agent-port": 6382,
    "dashboard-agent-grpc-port": 6383,
    "dashboard-agent-listen-port": 6384,
    "metrics-export-port": 6385,
}
"""`ray start` picks most of these from the ephemeral range (32768-60999) when nothing is said, where HCCL's lie too."""

HEAD_PORTS = {"dashboard-port": 8265, "ray-client-server-port": 10001}
METRIC_PORTS = {"AUTOSCALER_METRIC_PORT": 6386, "DASHBOARD_METRIC_PORT": 6387}
"""The two of the head that have no option; 44217 and 44227 when nothing is said."""

WORKER_PORTS = (10002, 19999)
HCCL_PORTS = 16
OBJECT_STORE_BYTES = 200_000_000
"""raylaunch passes almost no objects; Ray's default, 30 % of memory, does not fit into a container's /dev/shm."""

TOOLKIT_ENVIRONMENT = (
    "/usr/local/Ascend/cann/set_env.sh",
    "/usr/local/Ascend/ascend-toolkit/set_env.sh",
)
"""CANN's own since 8.5, and before that. The first that is there counts: where both are, the older one is a link to the
newer, or another version, whose libraries would mix with these.
"""

ATB_ENVIRONMENT = "/usr/local/Ascend/nnal/atb/set_env.sh"
"""Adds to the toolkit's, so it comes after it."""

ROOT_HOME = "/root"
MARKER = "RAYLAUNCH_CLUSTER"


@dataclass(frozen=True)
class _Site:
    """The hosts, and how they are reached."""

    name: str
    head: str
    workers: tuple[str, ...]
    ssh_user: str
    ssh_key: str | None
    bare: bool
    asked: tuple[str, ...]


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
    """Return the YAML of a cluster for this recipe: `ray up` on it gives the NPUs that the recipe asks for.

    Without `bare`, Ray runs in the recipe's container on each host. `name` is the cluster's, by default the recipe's.
    `asked` is how the recipe was asked for on the command line (path, --set), for the comment that says so.

    Raises:
        PlanError: not enough hosts, one named twice, or an address that Ray's local provider cannot use.
        RecipeError: no container and not `bare`, or a port of the recipe that Ray needs.
    """
    site = _Site(name or loaded.name, head, tuple(workers), ssh_user, ssh_key, bare, tuple(asked))
    _check(loaded.recipe, site)
    return "\n".join(_lines(loaded, site)) + "\n"


def token_folder(name: str) -> str:
    """Return the folder that holds a cluster's token, the same on the launching machine and on every host."""
    return f"~/.raylaunch/cluster/{name}"


def _check(recipe: Recipe, site: _Site) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", site.name):
        raise PlanError(
            f"{site.name!r} is no cluster name", todo="use letters, digits, '-', '_' and '.'"
        )
    hosts = (site.head, *site.workers)
    for host in hosts:
        _check_address(host)
    if twice := next((host for host in hosts if hosts.count(host) > 1), None):
        raise PlanError(f"host {twice} is given twice")
    needed = _hosts_needed(recipe)
    if len(hosts) < needed:
        raise PlanError(
            f"the recipe needs {needed} hosts, and {len(hosts)} are given",
            todo="add --worker IP, once per further host",
        )
    rays = {*FIXED_PORTS.values(), *HEAD_PORTS.values(), *METRIC_PORTS.values()}
    if taken := _ports(recipe).keys() & rays:
        port = min(taken)
        raise RecipeError(
            f"{_ports(recipe)[port]}: Ray itself needs port {port}", todo="choose another one"
        )


def _check_address(host: str) -> None:
    try:
        ipaddress.IPv4Address(host)
    except ValueError as error:
        raise PlanError(
            f"{host!r} is no IPv4 address",
            why="Ray's local provider knows its hosts by IPv4 address (Ray 2.60, local/node_provider.py)",
            todo="give the address of the network that joins the hosts",
        ) from error


def _hosts_needed(recipe: Recipe) -> int:
    if recipe.hardware.spread:
        return recipe.parallel.servers
    per_host = max(1, recipe.npus_per_node // recipe.npus_per_server)
    return -(-recipe.parallel.servers // per_host)


def _ports(recipe: Recipe) -> dict[int, str]:
    """The ports that servers of the recipe listen on, with the field that names each."""
    network = recipe.network
    first = network.hccl_base_port
    hccl = dict.fromkeys(range(first, first + HCCL_PORTS), "network.hccl_base_port")
    return {**hccl, network.http_port: "network.http_port", network.rpc_port: "network.rpc_port"}


def _worker_ports(recipe: Recipe) -> tuple[int, int]:
    """The longest stretch of Ray's usual worker ports that leaves the recipe's alone."""
    first, last = WORKER_PORTS
    edges = [first - 1, *sorted(port for port in _ports(recipe) if first <= port <= last), last + 1]
    below, above = max(pairwise(edges), key=lambda gap: gap[1] - gap[0])
    return below + 1, above - 1


def _lines(loaded: LoadedRecipe, site: _Site) -> Iterator[str]:
    yield from _title(loaded, site)
    yield f"cluster_name: {site.name}"
    yield ""
    yield from _hosts(site)
    yield from _files(site)
    yield from _containers(loaded.recipe, site) if not site.bare else _bare(site)
    yield from _start(loaded.recipe, site)


def _title(loaded: LoadedRecipe, site: _Site) -> Iterator[str]:
    again = ["raylaunch", "cluster", *(site.asked or (loaded.name,)), "--head", site.head]
    again += [word for worker in site.workers for word in ("--worker", worker)]
    again += ["--ssh-user", site.ssh_user, *(["--ssh-key", site.ssh_key] if site.ssh_key else [])]
    again += [
        *(["--bare"] if site.bare else []),
        *(["--name", site.name] if site.name != loaded.name else []),
    ]
    yield f"# Deployment hosts of cluster {site.name}, recipe {loaded.name}: a file for Ray's own cluster launcher."
    yield "#"
    yield "#   ray up -y FILE                  starts Ray on every host; run it again after a change"
    yield "#   ray exec FILE 'COMMAND'         runs a command on the head"
    yield "#   ray down -y FILE                ends it"
    yield "#"
    yield "# Lines marked EDIT hold what differs from site to site. Everything in this file comes out of one command,"
    yield "# which also makes the token that the hosts share (see file_mounts):"
    yield "#"
    yield f"#   {shlex.join(again)} -o FILE"
    yield ""


def _hosts(site: _Site) -> Iterator[str]:
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
        yield f"  ssh_private_key: {_quoted(site.ssh_key)} # EDIT: reaches every host; Ray copies it to the head"
    else:
        yield "  # EDIT: without a key, this machine must reach every host by itself, and the head every worker."
        yield "  # ssh_private_key: ~/.ssh/id_ed25519"
    yield ""


def _files(site: _Site) -> Iterator[str]:
    folder = token_folder(site.name)
    yield "# An open Ray port lets anybody run code as the user of Ray, so the cluster wants a token: a file `token`"
    yield "# in this folder. `raylaunch cluster` makes it (by hand: 32 or more random characters, mode 600); Ray copies"
    yield "# the folder to each host. Shells that talk to the cluster need both variables:"
    yield f"#   export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={folder}/token"
    yield "file_mounts:"
    yield f"  {folder}: {folder}"
    yield ""


def _containers(recipe: Recipe, site: _Site) -> Iterator[str]:
    token = f"{ROOT_HOME}/{token_folder(site.name).removeprefix('~/')}/token"
    box = recipe.container.name if recipe.container else ""
    name = _quoted(image(recipe))  # refuses a recipe without container
    yield "docker:"
    yield f"  image: {name} # EDIT, here and in initialization_commands"
    yield f"  container_name: {_quoted(box)}"
    yield "  pull_before_run: false # a host that has the image needs no registry"
    yield "  disable_shm_size_detection: true"
    yield "  disable_automatic_runtime_detection: true # it looks for NVIDIA's"
    yield "  run_options: # EDIT: the mounts, of the weights above all"
    yield from (f"    - {_quoted(option)}" for option in _options(run_options(recipe)))
    yield "    # So that a shell in the container may talk to the cluster."
    yield f"    - {_quoted('-e RAY_AUTH_MODE=token')}"
    yield f"    - {_quoted(f'-e RAY_AUTH_TOKEN_PATH={token}')}"
    yield ""
    yield "# On each host, before the container: Ray copies files into it by rsync, and the head's runs ssh to workers."
    yield "initialization_commands:"
    yield "  - |-"
    yield f"    image={shlex.quote(image(recipe))} # EDIT: as under docker; your mirror, or an image of your own"
    yield '    docker run --rm "$image" bash -c \\'
    yield f"    'command -v rsync && command -v ssh && ray --version | grep -F \" {RAY}.\"' ||"
    lines = [
        f"The image lacks rsync, an SSH client or Ray {RAY}. Build one that has them, and name it in this file on both",
        "lines marked EDIT that name an image, under docker and under initialization_commands:",
    ]
    build = [
        "RUN apt-get update && apt-get install -y rsync openssh-client",
        f'RUN pip install "ray[default]=={RAY}.*"',
    ]
    yield "    { printf '%s\\n' \\"
    yield from (f"    {shlex.quote(line)} \\" for line in lines)
    yield '    "FROM $image" \\'
    yield from (f"    {shlex.quote(line)} \\" for line in build)
    yield "    >&2; false; }"
    yield ""


def _bare(site: _Site) -> Iterator[str]:
    yield "# No containers: each host has Python, Ray and vLLM, and rsync. Ray's launcher runs everything, even the"
    yield "# `ray stop` of `ray down`, in a login shell (`bash --login -c -i`): `ray` must be in the PATH that"
    yield f"# ~/.bashrc or ~/.profile of {site.ssh_user} sets there, whatever the PATH of sshd."
    yield "setup_commands:"
    yield "  - >-"
    yield f"    ray --version | grep -F ' {RAY}.' ||"
    yield f"    {{ echo 'This host lacks Ray {RAY} in the PATH of a login shell: set it in ~/.bashrc' >&2; false; }}"
    yield ""


def _start(recipe: Recipe, site: _Site) -> Iterator[str]:
    yield "# Each command is one login shell of its own."
    yield "#   RAY_enable_autoscaler_v2=0   version 2, Ray's default, never starts workers of provider local (measured)"
    yield "#   RAY_worker_niceness=0        Ray would run its workers, and so vLLM, at niceness 15"
    yield "#   RAY_prestart_worker_first_driver=0   Ray would start a worker per core for the first who connects"
    yield "#   ASCEND_RT_VISIBLE_DEVICES    set before Ray it would be dealt out in shuffled order; raylaunch sets it"
    yield "#   --resources                  the NPUs of one host, whether or not Ray's Python can count them"
    yield "#   ports                        fixed, outside those of vLLM and HCCL"
    yield "#   --include-log-monitor=false  on a worker the log monitor would outlive `ray down` (measured)"
    if site.bare:
        yield f"# The first command ends what an earlier `ray up` of this cluster left, by its mark {MARKER}."
        yield "# `ray stop` would end every Ray of the host, whosever it is; `ray down` does so, on the head. On the"
        yield "# workers Ray then ends by itself, within two minutes (measured)."
    else:
        yield "# `ray stop` ends every Ray that it sees, and in the container that is this cluster's."
    for role in ("head", "worker"):
        yield f"{role}_start_ray_commands:"
        yield "  - >-"
        yield from (f"    {line}" for line in (_end_marked(site) if site.bare else ["ray stop"]))
        yield "  - >-"
        yield from (f"    {line}" for line in _ray_start(recipe, site, role))


def _end_marked(site: _Site) -> list[str]:
    """Shell lines that end the processes of this cluster: SIGTERM, up to 30 s, SIGKILL."""
    return [
        f"ours() {{ grep -lzsxF {MARKER}={site.name} /proc/[0-9]*/environ | cut -d/ -f3; }};",
        "kill -TERM $(ours) 2>/dev/null;",
        'for second in $(seq 30); do [ -z "$(ours)" ] && break; sleep 1; done;',
        "kill -KILL $(ours) 2>/dev/null; true",
    ]


def _ray_start(recipe: Recipe, site: _Site, role: str) -> Iterator[str]:
    if role == "head":
        yield "export RAY_enable_autoscaler_v2=0;"
        yield f"export {' '.join(f'{name}={port}' for name, port in METRIC_PORTS.items())};"
    yield f"export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={token_folder(site.name)}/token;"
    yield f"export RAY_worker_niceness=0 RAY_prestart_worker_first_driver=0 {MARKER}={site.name};"
    yield "unset ASCEND_RT_VISIBLE_DEVICES RAY_AUTH_TOKEN;"
    yield f"for file in {' '.join(TOOLKIT_ENVIRONMENT)};"
    yield "do if [ -f $file ]; then source $file; break; fi; done;"
    yield f"if [ -f {ATB_ENVIRONMENT} ]; then source {ATB_ENVIRONMENT}; fi;"
    if role == "head":
        yield f"ray start --head --node-ip-address={site.head}"
        yield "--autoscaling-config=~/ray_bootstrap_config.yaml"
        yield "--disable-usage-stats"
    else:
        yield f"ray start --address=$RAY_HEAD_IP:{FIXED_PORTS['port']}"
        yield "--include-log-monitor=false"
    npus = json.dumps({"NPU": recipe.npus_per_node})
    yield f"--resources='{npus}'"
    yield f"--object-store-memory={OBJECT_STORE_BYTES}"
    ports = (
        {**FIXED_PORTS, **HEAD_PORTS}
        if role == "head"
        else {k: v for k, v in FIXED_PORTS.items() if k != "port"}
    )
    yield from (f"--{name}={port}" for name, port in ports.items())
    low, high = _worker_ports(recipe)
    yield f"--min-worker-port={low} --max-worker-port={high}"


def _options(words: list[str]) -> Iterator[str]:
    """One option with its value per item, quoted: Ray joins them with blanks for a shell."""
    found: list[list[str]] = []
    for word in words:
        if word.startswith("-"):
            found.append([word])
        else:
            found[-1].append(word)
    return (shlex.join(option) for option in found)


def _quoted(text: str) -> str:
    """A YAML scalar; JSON's strings are YAML's too."""
    return (
        text
        if re.fullmatch(r"[A-Za-z_~/][A-Za-z0-9_~/.-]*", text)
        else json.dumps(text, ensure_ascii=False)
    )
