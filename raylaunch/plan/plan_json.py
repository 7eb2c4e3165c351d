"""The plan as JSON (schema 1) and back."""

from __future__ import annotations

from typing import Any

from raylaunch.plan.launch_plan import SCHEMA, Flag, LaunchPlan, Place, Ports, ServerPlan, Value


def plan_to_dict(plan: LaunchPlan) -> dict[str, Any]:
    """Return the plan as plain JSON values; `argv` stands beside the `flags` it follows from."""
    return {
        "schema": plan.schema,
        "deployment": plan.deployment,
        "recipe": plan.recipe,
        "platform": plan.platform,
        "model": plan.model,
        "served_name": plan.served_name,
        "endpoint": plan.endpoint,
        "secrets": list(plan.secrets),
        "servers": [_server_to_dict(server) for server in plan.servers],
    }


def plan_from_dict(data: dict[str, Any]) -> LaunchPlan:
    """Rebuild a plan.

    Raises:
        ValueError: the schema is not the one this version writes.
        KeyError: a part is missing.
    """
    if data["schema"] != SCHEMA:
        raise ValueError(f"plan schema {data['schema']} is not {SCHEMA}")
    return LaunchPlan(
        deployment=data["deployment"],
        recipe=data["recipe"],
        platform=data["platform"],
        served_name=data["served_name"],
        model=data["model"],
        endpoint=data["endpoint"],
        servers=tuple(_server_from_dict(server) for server in data["servers"]),
        secrets=tuple(data["secrets"]),
    )


def _server_to_dict(server: ServerPlan) -> dict[str, Any]:
    node = {"ip": server.node.ip, "interface": server.node.interface}
    return {
        "index": server.index,
        "ranks": list(server.ranks),
        "role": server.role,
        "node": {**node, "id": server.node.node_id} if server.node.node_id else node,
        "devices": list(server.devices),
        "env": _values(server.env),
        "unset": _values(server.unset),
        "argv": list(server.argv),
        "flags": [
            {"name": flag.name, "value": flag.value, "origin": flag.origin} for flag in server.flags
        ],
        "ports": {
            "http": server.ports.http,
            "rpc": server.ports.rpc,
            "hccl_base": server.ports.hccl_base,
        },
        "log": server.log,
    }


def _values(values: dict[str, Value]) -> dict[str, dict[str, str]]:
    return {name: {"value": value.value, "origin": value.origin} for name, value in values.items()}


def _server_from_dict(data: dict[str, Any]) -> ServerPlan:
    node = data["node"]
    return ServerPlan(
        index=data["index"],
        ranks=tuple(data["ranks"]),
        role=data["role"],
        node=Place(node["ip"], node["interface"], node.get("id", "")),
        devices=tuple(data["devices"]),
        env={name: Value(**value) for name, value in data["env"].items()},
        flags=tuple(Flag(**flag) for flag in data["flags"]),
        ports=Ports(**data["ports"]),
        log=data["log"],
        unset={name: Value(**value) for name, value in data["unset"].items()},
    )
