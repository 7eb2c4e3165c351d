"""Parts of a ProbeActor that need no Ray."""

from __future__ import annotations

import os

import pytest

from raylaunch.runtime.agent import probe_actor


@pytest.mark.parametrize(
    ("niceness", "load", "asks"),
    [(19, 1.5, True), (19, 2.5, False), (0, 30.0, True)],
    ids=["a host with idle cores", "a busy host", "a command waits"],
)
def test_flags_are_listed_in_the_background_only_on_an_idle_core(monkeypatch, niceness, load, asks):
    asked = []
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(probe_actor.vllm_flags, "find", lambda *_: "a vLLM")
    monkeypatch.setattr(probe_actor.vllm_flags, "answer", lambda *given: asked.append(given))
    probe_actor._ask_flags(10.0, niceness)
    assert bool(asked) == asks
