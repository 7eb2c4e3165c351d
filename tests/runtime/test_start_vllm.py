"""The embedded default with real vLLM on CPU: start, chat, both ranks, verify, logs, two faults,
stop, nothing left."""

from __future__ import annotations

import httpx
import pytest
from drilled import drill
from ray_clusters import await_true

from raylaunch.node.process.process_markers import find_marked

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(1500)]

TOOLS = (
    *(
        "--set",
        "features.tool_calling.enabled=true",
        "--set",
        "features.tool_calling.tool_parser=hermes",
    ),
    *(
        "--set",
        "args.structured-outputs-config.enable_in_reasoning=true",
    ),  # random weights never end their thoughts
)


PROCESS_FAULTS = ("kill-engine", "kill-controller")


def test_local_dual_serves_with_real_vllm_and_recovers(user, ports):
    """One test: each start of real vLLM takes a minute."""
    started = user.run("start", "local-dual", "--name", "test-real", *ports, *TOOLS, deadline_s=600)
    assert started.code == 0, started.out + started.err
    status = user.run("status", "test-real", "-o", "json").json()
    endpoint = status["endpoint"]

    def chat() -> None:
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "Hello, who are you?"}],
            "max_tokens": 8,
        }
        answer = httpx.post(f"{endpoint}/chat/completions", json=body, timeout=120, trust_env=False)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"]

    for _ in range(6):
        chat()

    def both_ranks_served() -> bool:
        metrics = httpx.get(
            f"{endpoint.removesuffix('/v1')}/metrics", timeout=60, trust_env=False
        ).text
        served = {
            line.split('engine="')[1][0]
            for line in metrics.splitlines()
            if line.startswith("vllm:request_success_total") and float(line.rsplit(" ", 1)[1]) > 0
        }
        return served == {"0", "1"}

    await_true(both_ranks_served, "both ranks have served", 60)
    check_verify(user)
    assert "Application startup complete" in user.run("logs", "test-real", "-n", "500").out
    assert (
        "Launching 1 data parallel engine"
        in user.run("logs", "test-real", "--server", "1", "-n", "500").out
    )
    names = {process.command.split()[0] for process in find_marked("test-real")}
    assert {"VLLM::EngineCore_DP0", "VLLM::EngineCore_DP1"} <= names, (
        "vLLM's own processes keep the marker"
    )

    check_drill(user)

    stopped = user.run("stop", "test-real", "-o", "json")
    assert stopped.code == 0, stopped.out + stopped.err
    assert stopped.json()["left"] == []
    assert "SIGTERM" not in stopped.err, "Ray warns in the thread that connects"
    assert find_marked("test-real") == []
    assert [
        process for process in find_marked() if process.deployment.startswith("@test-real")
    ] == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{endpoint}/models", timeout=5, trust_env=False)


def check_verify(user):
    verified = user.run("verify", "test-real", "--timeout", "120", "-o", "json")
    assert verified.code == 0, verified.out + verified.err
    checks = {check["check"]: check for check in verified.json()["checks"]}
    assert {name: check["result"] for name, check in checks.items()} == {
        **dict.fromkeys(
            ("models", "rank 0", "rank 1", "chat", "chinese", "stream", "reasoning"), "passed"
        ),
        "tool call": "unclear",  # random weights call a tool only when they must
    }
    assert checks["rank 0"]["detail"] == checks["rank 1"]["detail"]
    assert 'get_current_weather({"city": "' in checks["tool call"]["detail"]
    assert "keeps <think> in content" in checks["reasoning"]["detail"]


def check_drill(user):
    outcomes, status = drill(user, "test-real", PROCESS_FAULTS, 800)
    assert set(outcomes) == set(PROCESS_FAULTS)
    assert not any(one["left"] or one["problem"] for one in outcomes.values())
    assert outcomes["kill-controller"]["failed"] == 0
    assert status["attempt"] == len(PROCESS_FAULTS), (
        "all but the controller's death start the gang again"
    )
    assert "VLLM::EngineCore" in outcomes["kill-engine"]["detected_by"]
