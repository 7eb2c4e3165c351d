"""What the Python API refuses before it looks for a cluster."""

import pytest

import raylaunch
from raylaunch import api
from raylaunch.errors import RecipeError


@pytest.mark.parametrize("call", [raylaunch.deploy, api.preflight])
def test_a_skipped_check_must_be_one(call, monkeypatch):
    monkeypatch.setenv(
        "RAY_ADDRESS", "192.0.2.1:1"
    )  # a documentation address: to ask it would take long
    with pytest.raises(RecipeError, match="no check has the id 'tunning'") as caught:
        call("a2-dual", skip_checks={"tunning": "ours"})
    assert "did you mean tuning?" in str(caught.value)
