"""Spans need a package where the controller runs."""

from __future__ import annotations

import pytest

from raylaunch.checks.monitoring.tracing_checks import check_tracing
from raylaunch.recipe.catalog import read

IP = "192.0.2.10"
ON = "tracing.endpoint=http://192.0.2.99:4318"


def test_a_missing_package_is_a_warning_with_the_command():
    loaded = read("a2-dual", [ON])
    (finding,) = check_tracing(loaded, installed=False, ip=IP)
    assert (finding.id, finding.level, finding.where) == ("tracing-package", "warning", IP)
    assert "opentelemetry-proto" in finding.what
    assert "pip install opentelemetry-proto" in finding.todo


@pytest.mark.parametrize(("sets", "installed"), [([ON], True), ([], False)])
def test_nothing_is_missing_that_is_there_or_not_wanted(sets, installed):
    assert list(check_tracing(read("a2-dual", sets), installed=installed, ip=IP)) == []
