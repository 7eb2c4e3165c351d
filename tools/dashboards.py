"""Write the Grafana dashboards of `raylaunch monitoring`, with Grafana's own typed SDK.

`--check` only compares. The files are data of the package, so users do not need the SDK.
`--schema FOLDER` checks them against Grafana's published JSON schemas: the folder `jsonschema` of
a clone of grafana/grafana-foundation-sdk, branch v10.1.x+cog-v0.0.x.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from grafana_foundation_sdk.builders import common, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable, QueryVariable
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef, Panel, VariableRefresh

from raylaunch.monitoring.metric_names import BY_NAME

FOLDER = Path(__file__).resolve().parent.parent / "raylaunch" / "monitoring" / "dashboards"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
D = 'deployment="$deployment"'
G = f'{D}, group=~"$group"'
R = f'{G}, rank=~"$rank"'
N = f'{D}, node=~"$node"'


def main() -> int:
    files = {FOLDER / f"{name}.json": text for name, text in dashboards().items()}
    if sys.argv[1:2] == ["--schema"]:
        problems = list(schema_problems(Path(sys.argv[2])))
        print("\n".join(problems) or "the dashboards fit the schemas")
        return 1 if problems else 0
    if sys.argv[1:] == ["--check"]:
        stale = [
            path.name
            for path, text in files.items()
            if not path.is_file() or path.read_text(encoding="utf-8") != text
        ]
        print(
            f"stale: {', '.join(stale)}: run `python tools/dashboards.py`"
            if stale
            else "the dashboards are current"
        )
        return 1 if stale else 0
    FOLDER.mkdir(exist_ok=True)
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.name}")
    return 0


def schema_problems(folder: Path) -> Iterator[str]:
    """Yield where a dashboard, the options of a panel or a query does not fit its schema."""
    from jsonschema import Draft7Validator
    from jsonschema.exceptions import best_match

    def problems(part: object, module: str, name: str) -> Iterator[str]:
        text = (folder / f"{module}.jsonschema.json").read_text(encoding="utf-8")
        schema = {**json.loads(text), "$ref": f"#/definitions/{name}"}
        for error in Draft7Validator(schema).iter_errors(part):
            # Of alternatives the deepest error is that of the one that was meant.
            best = best_match([error])
            yield f"{name} of {module}: {best.json_path}: {best.message}"

    for text in dashboards().values():
        made = json.loads(text)
        yield from problems(made, "dashboard", "Dashboard")
        for panel in made["panels"]:
            yield from problems(panel["options"], panel["type"].replace("-", ""), "Options")
            for target in panel["targets"]:
                yield from problems(target, "prometheus", "dataquery")


def dashboards() -> dict[str, str]:
    return {
        "raylaunch-deployment": written(deployment()),
        "raylaunch-rank": written(rank()),
        "raylaunch-node": written(node()),
    }


def written(board: Dashboard) -> str:
    raw = json.loads(JSONEncoder().encode(board.build()))
    text = json.dumps(without_nulls(raw), sort_keys=True, indent=2) + "\n"
    unknown = set(re.findall(r"raylaunch_[a-z_]+", text)) - known_names()
    assert not unknown, f"no such metric: {unknown}"
    return text


def without_nulls(value: object) -> object:
    """Leave out what the SDK writes for unset fields: Grafana's own exports have no null there."""
    if isinstance(value, dict):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    if isinstance(value, list):
        return [without_nulls(part) for part in value]
    return value


def known_names() -> set[str]:
    names = set(BY_NAME)
    for metric in BY_NAME.values():
        if metric.kind == "histogram":
            names |= {f"{metric.name}_{end}" for end in ("bucket", "sum", "count")}
    return names


def board(name: str, title: str, what: str) -> Dashboard:
    source = DatasourceVariable("datasource").label("Data source").type("prometheus")
    made = (
        Dashboard(title)
        .uid(name)
        .description(f"Written by `raylaunch monitoring`. {what}")
        .tags(["raylaunch"])
        .readonly()
    )
    made.refresh("5s").time("now-1h", "now").with_variable(source)
    return made.with_variable(
        choice("deployment", "label_values(raylaunch_deployment_info, deployment)")
    )


def choice(name: str, query: str, *, several: bool = False) -> QueryVariable:
    variable = QueryVariable(name).label(name).query(query).datasource(SOURCE)
    variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    return variable.multi(True).include_all(True) if several else variable


def query(expr: str, legend: str, number: int = 0) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expr).legend_format(legend).ref_id("ABCDEFGH"[number])


def lines(title: str, unit: str, *queries: tuple[str, str], width: int = 12) -> Builder[Panel]:
    panel = (
        timeseries.Panel().title(title).unit(unit).datasource(SOURCE).span(width).height(8).min(0)
    )
    panel.legend(legend())
    for index, (expr, name) in enumerate(queries):
        panel.with_target(query(expr, name, index))
    return panel


def number(title: str, unit: str, expr: str, name: str = "") -> Builder[Panel]:
    panel = stat.Panel().title(title).unit(unit).datasource(SOURCE).span(6).height(4)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return panel.with_target(query(expr, name))


def legend() -> common.VizLegendOptions:
    """Return Grafana's own default: the schema requires options, and the SDK's hide the legend."""
    return common.VizLegendOptions().show_legend(True)


def deployment() -> Dashboard:
    made = board(
        "raylaunch-deployment",
        "raylaunch: deployment",
        "Phases, failures, ranks and gateway of one deployment.",
    )
    made.with_variable(
        choice("group", f"label_values(raylaunch_group_attempt{{{D}}}, group)", several=True)
    )
    phases = (
        statetimeline.Panel().title("Phase of each group").datasource(SOURCE).span(24).height(6)
    )
    phases.legend(legend())
    phases.with_target(query(f"raylaunch_group_phase{{{G}}} == 1", "{{group}} {{phase}}"))
    panels = [
        number("Phase", "none", f"raylaunch_deployment_phase{{{D}}} == 1", "{{phase}}"),
        number("Servers up", "none", f"sum(raylaunch_server_up{{{G}}})"),
        number("Failures", "none", f"sum(raylaunch_group_failures_total{{{G}}})"),
        number("Since the last failure", "s", f"time() - max(raylaunch_group_last_failure_timestamp_seconds{{{G}}})"),
        phases,
        lines("Tokens per second", "none", (f"sum by (group, rank) (rate(raylaunch_rank_tokens_total{{{G}}}[1m]))", "{{group}} rank {{rank}}")),
        lines("Requests", "none", (f"sum by (group) (raylaunch_rank_requests_running{{{G}}})", "{{group}} running"), (f"sum by (group) (raylaunch_rank_requests_waiting{{{G}}})", "{{group}} waiting")),
        lines("Restarts by cause", "none", (f"raylaunch_group_restarts_total{{{G}}}", "{{group}} {{cause}}")),
        lines("Detection and recovery (mean)", "s", (mean("detection"), "{{group}} detection"), (mean("recovery"), "{{group}} recovery")),
        lines("Stages of the last start", "s", (f"raylaunch_server_start_stage_seconds{{{G}}}", "{{group}}/{{server}} {{stage}}")),
        lines("Gateway", "reqps", *gateway()),
    ]  # fmt: skip
    return filled(made, panels)


def mean(what: str) -> str:
    name = f"raylaunch_group_{what}_seconds"
    return f"{name}_sum{{{G}}} / ({name}_count{{{G}}} > 0)"


def gateway() -> list[tuple[str, str]]:
    names = ("requests", "retries", "failed_requests", "rejected_requests", "broken_streams")
    return [
        (f"rate(raylaunch_gateway_{name}_total{{{D}}}[1m])", name.replace("_", " "))
        for name in names
    ]


def rank() -> Dashboard:
    made = board(
        "raylaunch-rank", "raylaunch: one rank", "Load, cache and progress of data-parallel ranks."
    )
    made.with_variable(
        choice("group", f"label_values(raylaunch_group_attempt{{{D}}}, group)", several=True)
    )
    made.with_variable(
        choice("rank", f"label_values(raylaunch_rank_tokens_total{{{G}}}, rank)", several=True)
    )
    hits = f"rate(raylaunch_rank_prefix_cache_hits_total{{{R}}}[5m])"
    queries = f"rate(raylaunch_rank_prefix_cache_queries_total{{{R}}}[5m])"
    name = "{{group}}/{{rank}}"
    panels = [
        lines("Tokens per second", "none", (f"rate(raylaunch_rank_tokens_total{{{R}}}[1m])", name)),
        lines("Requests", "none", (f"raylaunch_rank_requests_running{{{R}}}", f"{name} running"), (f"raylaunch_rank_requests_waiting{{{R}}}", f"{name} waiting")),
        lines("KV cache in use", "percentunit", (f"raylaunch_rank_kv_cache_usage_ratio{{{R}}}", name)),
        lines("Prefix cache hits", "percentunit", (f"{hits} / {queries}", name)),
        lines("Since progress", "s", (f"raylaunch_rank_progress_age_seconds{{{R}}}", name)),
        lines("Stalled", "s", (f"raylaunch_rank_stalled_seconds{{{R}}}", name), (f"raylaunch_rank_canary_failing_seconds{{{R}}}", f"{name} completions fail")),
    ]  # fmt: skip
    return filled(made, panels)


def node() -> Dashboard:
    made = board(
        "raylaunch-node",
        "raylaunch: NPUs and hosts",
        "NPUs, memory, disks and processes of the nodes.",
    )
    made.with_variable(
        choice(
            "node", f"label_values(raylaunch_node_memory_total_bytes{{{D}}}, node)", several=True
        )
    )
    npu = "{{node}} NPU {{npu}}"
    panels = [
        lines("HBM in use", "percentunit", (f"raylaunch_npu_hbm_used_bytes{{{N}}} / raylaunch_npu_hbm_total_bytes{{{N}}}", npu)),
        lines("AI Core", "percentunit", (f"raylaunch_npu_utilization_ratio{{{N}}}", npu)),
        lines("Temperature", "celsius", (f"raylaunch_npu_temperature_celsius{{{N}}}", npu)),
        lines("Power", "watt", (f"raylaunch_npu_power_watts{{{N}}}", npu)),
        lines("Uncorrected HBM errors in an hour", "none", (f'increase(raylaunch_npu_hbm_ecc_errors_total{{{N}, kind="uncorrected"}}[1h])', npu)),
        lines("Memory available", "bytes", (f"raylaunch_node_memory_available_bytes{{{N}}}", "{{node}}")),
        lines("Disk free", "bytes", (f"raylaunch_node_disk_free_bytes{{{N}}}", "{{node}} {{holds}}")),
        lines("Memory of the servers", "bytes", (f"raylaunch_server_resident_memory_bytes{{{D}}}", "{{group}}/{{server}}")),
        lines("Unhealthy NPUs", "none", (f"count by (node) (raylaunch_npu_healthy{{{N}}} == 0)", "{{node}}")),
    ]  # fmt: skip
    return filled(made, panels)


def filled(made: Dashboard, panels: list[Builder[Panel]]) -> Dashboard:
    for panel in panels:
        made.with_panel(panel)
    return made


if __name__ == "__main__":
    raise SystemExit(main())
