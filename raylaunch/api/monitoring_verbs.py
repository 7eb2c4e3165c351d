"""The verb that writes the files of a Prometheus, an Alertmanager and a Grafana."""

from __future__ import annotations

from importlib.resources import files

from raylaunch.home import home


def monitoring_files(targets: str | None = None, token_file: str = "") -> dict[str, str]:
    """Return the files by name: configuration, rules, and dashboards below `dashboards/`.

    Args:
        targets: Glob of the files that the controllers write; by default those of this user's
            home on this machine.
        token_file: File with the bearer token of the endpoints; "" where they ask for none.
    """
    from raylaunch.monitoring.prometheus_files import prometheus_files

    where = targets or str(home() / "monitoring" / "*.json")
    found = prometheus_files(where, token_file)
    folder = files("raylaunch.monitoring").joinpath("dashboards")
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        found[f"dashboards/{entry.name}"] = entry.read_text(encoding="utf-8")
    return found
