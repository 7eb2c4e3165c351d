"""The short form of the chaos benchmark: 20 random faults, the same ones in each run."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SEED = 2
"""Of the 20 rounds most injure the deployment that runs, which takes seconds each; a start takes
longer. Every kind comes up."""
LIMIT_S = 1200.0


@pytest.fixture
def chaos(monkeypatch):
    """The module; the benchmark sets RAYLAUNCH_HOME for this process."""
    kept = list(sys.path)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("RAYLAUNCH_HOME", "")
    yield importlib.import_module("chaos")
    sys.path[:] = kept


@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_after_each_of_20_random_faults_the_service_is_ready_or_gone(chaos):
    server = importlib.import_module("chaos_product").STANDIN
    result = chaos.run(chaos.SHORT_ROUNDS, SEED, server, limit_s=LIMIT_S)
    print(result.as_table())
    assert chaos.missed_goals(result.outcomes, SEED) == [], result.as_table()
    assert result.skipped == 0, result.as_table()
    assert len(result.outcomes) == chaos.SHORT_ROUNDS + 1, "the stop at the end is one more"
