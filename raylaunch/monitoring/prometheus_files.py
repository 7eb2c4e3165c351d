"""The files of a Prometheus and an Alertmanager that watch deployments. Pure: text by file name."""

from __future__ import annotations

from typing import Any

from raylaunch.monitoring.alerts import ACTIVE, FRESH_S, Alert, all_alerts
from raylaunch.monitoring.targets import KIND

HEAD = "# Written by `raylaunch monitoring`.\n"
INTERVAL = "5s"
"""Of scrapes and evaluations: an alert fires within two of them."""
ALERTMANAGER = "localhost:9093"
_BROKEN = "pending|checking|starting|restarting|failed"


def prometheus_files(targets: str, token_file: str = "") -> dict[str, str]:
    """Return the files by name.

    Args:
        targets: Glob of the target files on the machine of the Prometheus.
        token_file: File with the bearer token of the endpoints; "" where they ask for none.
    """
    rules = {
        "groups": [
            {"name": "raylaunch", "interval": INTERVAL, "rules": _recordings()},
            {
                "name": "raylaunch-alerts",
                "interval": INTERVAL,
                "rules": [_rule(alert) for alert in all_alerts()],
            },
        ]
    }
    return {
        "prometheus.yml": _yaml(_config(targets, token_file)),
        "raylaunch-rules.yml": _yaml(rules),
        "alertmanager.yml": _yaml(_ALERTMANAGER),
    }


def _config(targets: str, token_file: str) -> dict[str, Any]:
    jobs = [_job("raylaunch", targets, "raylaunch|vllm|ray")]
    if token_file:
        # The token is raylaunch's: neither vLLM nor Ray may see it.
        own = _job("raylaunch", targets, "raylaunch")
        own["authorization"] = {"type": "Bearer", "credentials_file": token_file}
        jobs = [own, _job("raylaunch-others", targets, "vllm|ray")]
    return {
        "global": {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL},
        "rule_files": ["raylaunch-rules.yml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [ALERTMANAGER]}]}]},
        "scrape_configs": jobs,
    }


def _job(name: str, targets: str, kinds: str) -> dict[str, Any]:
    return {
        "job_name": name,
        "file_sd_configs": [{"files": [targets], "refresh_interval": INTERVAL}],
        # Our metrics carry `deployment` themselves, with the value that the target has.
        "honor_labels": True,
        "relabel_configs": [
            {"source_labels": [KIND], "regex": kinds, "action": "keep"},
            {"source_labels": [KIND], "target_label": "job"},
        ],
    }


def _recordings() -> list[dict[str, str]]:
    last = "raylaunch_group_last_failure_timestamp_seconds"
    broken = f'raylaunch_group_phase{{phase=~"{_BROKEN}"}} == 1'
    tokens = "sum by (deployment, group, rank) (rate(raylaunch_rank_tokens_total[1m]))"
    hits = "rate(raylaunch_rank_prefix_cache_hits_total[5m])"
    queries = "rate(raylaunch_rank_prefix_cache_queries_total[5m])"
    return [
        {
            "record": ACTIVE,
            "expr": f"(time() - {last} < bool {FRESH_S}) == 1 or "
            f"({last} and on (deployment, group) ({broken}))",
        },
        {"record": "raylaunch:rank_tokens:rate1m", "expr": tokens},
        {"record": "raylaunch:rank_prefix_cache_hits:ratio_rate5m", "expr": f"{hits} / {queries}"},
    ]


def _rule(alert: Alert) -> dict[str, Any]:
    rule: dict[str, Any] = {"alert": alert.name, "expr": alert.expr}
    if alert.wait_s:
        rule["for"] = f"{alert.wait_s}s"
    rule["labels"] = {"severity": alert.severity}
    rule["annotations"] = {
        "summary": alert.summary,
        "cause": alert.cause,
        "remedy": alert.remedy,
        "command": alert.command,
    }
    return rule


_ALERTMANAGER: dict[str, Any] = {
    "route": {
        "receiver": "operators",
        "group_by": ["deployment", "group"],
        "group_wait": "5s",
        "group_interval": "1m",
        "repeat_interval": "4h",
    },
    "inhibit_rules": [
        {
            # A deployment that has failed needs one page, not one more for each symptom.
            "source_matchers": ['alertname = "RaylaunchDeploymentFailed"'],
            "target_matchers": ['severity != "critical"'],
            "equal": ["deployment"],
        }
    ],
    "receivers": [
        {
            "name": "operators",
            "webhook_configs": [{"url": "http://127.0.0.1:8080/alerts", "send_resolved": True}],
        }
    ],
}
"""An example: the receiver is to be replaced by that of the site."""


def _yaml(data: object) -> str:
    import yaml

    return HEAD + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
