"""Plans as JSON and back: of a deployment (schema 2), and of one group (schema 1)."""

from __future__ import annotations

from typing import Any

from raylaunch.plan.deployment_plan import DEPLOYMENT_SCHEMA, DeploymentPlan, GatewayPlan
from raylaunch.plan.launch_plan import SCHEMA, Flag, LaunchPlan, Place, Ports, ServerPlan, Value
from raylaunch.recipe.group_names import FIRST_GROUP


def deployment_plan_to_dict(plan: DeploymentPlan) -> dict[str, Any]:
    """Return the plan of a deployment as plain JSON values."""
    gateway = plan.gateway
    return {
        "schema": plan.schema,
        "deployment": plan.deployment,
        "recipe": plan.recipe,
        "endpoint": plan.endpoint,
        "gateway": None if gateway is None else _gateway_to_dict(gateway),
        "groups": [plan_to_dict(group) for group in plan.groups],
    }


def deployment_plan_from_dict(data: dict[str, Any]) -> DeploymentPlan:
    """Rebuild the plan of a deployment. One of schema 1 is that of its only group.

    Raises:
        ValueError: The schema is neither 1 nor 2.
        KeyError: A part is missing.
    """
    if data["schema"] == SCHEMA:
        plan = plan_from_dict(data)
        return DeploymentPlan(plan.deployment, plan.recipe, (plan,))
    if data["schema"] != DEPLOYMENT_SCHEMA:
        raise ValueError(f"plan schema {data['schema']} is neither {SCHEMA} nor 2")
    gateway = data["gateway"]
    return DeploymentPlan(
        deployment=data["deployment"],
        recipe=data["recipe"],
        groups=tuple(plan_from_dict(group) for group in data["groups"]),
        gateway=None if gateway is None else _gateway_from_dict(gateway),
    )


def _gateway_to_dict(gateway: GatewayPlan) -> dict[str, Any]:
    return {
        "endpoint": gateway.endpoint,
        "port": gateway.port,
        "nodes": list(gateway.nodes),
        "policy": gateway.policy,
    }


def _gateway_from_dict(data: dict[str, Any]) -> GatewayPlan:
    # Plans of earlier versions have no policy.
    policy = data.get("policy", "least-loaded")
    return GatewayPlan(data["endpoint"], data["port"], tuple(data["nodes"]), policy)


def plan_to_dict(plan: LaunchPlan) -> dict[str, Any]:
    """Return the plan of a group as plain JSON values; `argv` repeats the `flags` as words."""
    return {
        "schema": plan.schema,
        "deployment": plan.deployment,
        "group": plan.group,
        "role": plan.role,
        "recipe": plan.recipe,
        "platform": plan.platform,
        "model": plan.model,
        "served_name": plan.served_name,
        "endpoint": plan.endpoint,
        "secrets": list(plan.secrets),
        "servers": [_server_to_dict(server) for server in plan.servers],
    }


def plan_from_dict(data: dict[str, Any]) -> LaunchPlan:
    """Rebuild the plan of a group; older ones name no group.

    Raises:
        ValueError: The schema is not the one this version writes.
        KeyError: A part is missing.
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
        group=data.get("group", FIRST_GROUP),
        role=data.get("role", "serve"),
    )


def _server_to_dict(server: ServerPlan) -> dict[str, Any]:
    node = {"ip": server.node.ip, "interface": server.node.interface}
    if server.node.node_id:
        node["id"] = server.node.node_id
    return {
        "index": server.index,
        "ranks": list(server.ranks),
        "role": server.role,
        "node": node,
        "devices": list(server.devices),
        "env": _values(server.env),
        "unset": _values(server.unset),
        "argv": list(server.argv),
        "flags": [_flag_to_dict(flag) for flag in server.flags],
        "ports": {
            "http": server.ports.http,
            "rpc": server.ports.rpc,
            "hccl_base": server.ports.hccl_base,
        },
        "log": server.log,
    }


def _flag_to_dict(flag: Flag) -> dict[str, str | None]:
    return {"name": flag.name, "value": flag.value, "origin": flag.origin}


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
        env=_read_values(data["env"]),
        flags=tuple(Flag(**flag) for flag in data["flags"]),
        ports=Ports(**data["ports"]),
        log=data["log"],
        unset=_read_values(data["unset"]),
    )


def _read_values(data: dict[str, dict[str, str]]) -> dict[str, Value]:
    return {name: Value(**value) for name, value in data.items()}
