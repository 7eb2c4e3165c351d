"""The verb `monitoring`, with the real files."""

from __future__ import annotations

from typer.testing import CliRunner

from raylaunch.cli.app import app


def test_monitoring_writes_its_files_again_but_never_over_a_foreign_one(tmp_path):
    folder = tmp_path / "watch"

    def write(*words: str):
        return CliRunner().invoke(app, ["monitoring", "--out", str(folder), *words])

    done = write("--targets", "/srv/targets/*.json")
    assert done.exit_code == 0, done.output
    written = {path.name for path in folder.rglob("*") if path.is_file()}
    assert {"prometheus.yml", "raylaunch-rules.yml", "raylaunch-rank.json"} <= written
    assert "/srv/targets/*.json" in (folder / "prometheus.yml").read_text()
    assert write().exit_code == 0
    (folder / "alertmanager.yml").write_text("receivers: [mine]\n")
    refused = write()
    assert refused.exit_code != 0
    assert "alertmanager.yml" in refused.stderr
    assert (folder / "alertmanager.yml").read_text() == "receivers: [mine]\n"
