"""`verify` against the stand-in: a healthy service passes, and each fault is reported."""

import json
import re
import subprocess
from types import SimpleNamespace

import pytest
from standin_servers import free_port

from raylaunch.deployment import Deployment
from raylaunch.errors import NotReadyError, RecipeError
from raylaunch.plan.facts import Facts
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import read
from raylaunch.supervise.deployment_status import Status
from raylaunch.supervise.state import Phase
from raylaunch.verify.cases import CLOSED_TOOL, english, fixed_prompt, models
from raylaunch.verify.chat_client import ChatClient
from raylaunch.verify.grading import ChatReply
from raylaunch.verify.verification import KEY_VARIABLE, key_variable, verify

TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "minimax_m2")
QUICK = {"TOKEN_S": 0}
THINK = ("--reasoning-parser", "minimax_m2_append_think")


def plan_for(url, *sets, **changes):
    """The plan of local-dual at the stand-in's address."""
    sets = [f"network.http_port={url.rpartition(':')[2]}", *sets]
    loaded = read("local-dual", [*sets, *(f"{name}={value}" for name, value in changes.items())])
    return build_plan(loaded, [Facts("127.0.0.1", interface="lo")] * loaded.recipe.parallel.servers)


def with_tools(url):
    return plan_for(url, "features.tool_calling.enabled=true")


def results(found):
    return {proof.check: proof.result for proof in found.proofs}


def detail(found, check):
    return next(proof.detail for proof in found.proofs if proof.check == check)


def one_rank_fails(servers, fault, *flags):
    """A pair of which the second server has a fault from the start."""
    primary = servers.primary(*flags, **QUICK)
    servers.headless(primary, *flags, **QUICK, FAIL=fault, FAIL_AFTER_S=0)
    primary.says("Application startup complete")
    return primary


@pytest.fixture
def sound(servers):
    primary, _ = servers.pair(*TOOLS, *THINK, **QUICK)
    return primary


def test_a_healthy_service_passes_every_check(sound):
    seen = []
    found = verify(with_tools(sound.url), random_weights=True, on_proof=seen.append)
    assert results(found) == dict.fromkeys(
        ("models", "rank 0", "rank 1", "chat", "chinese", "stream", "tool call", "reasoning"),
        "passed",
    )
    assert (found.result, found.failed, tuple(seen)) == ("passed", (), found.proofs)
    assert "get_current_weather" in detail(found, "tool call")
    assert "usage at the end: 64 tokens" in detail(found, "stream")
    assert "64 pieces" in detail(found, "stream")
    assert [proof.rank for proof in found.proofs][:4] == [None, 0, 1, None]


def test_every_curl_line_can_be_pasted(sound):
    for proof in verify(with_tools(sound.url), random_weights=True).proofs:
        done = subprocess.run(
            ["sh", "-c", proof.curl], capture_output=True, text=True, timeout=60, check=True
        )
        if proof.check == "stream":
            assert done.stdout.endswith("data: [DONE]\n\n")
        else:
            assert json.loads(done.stdout)["object"] in (
                "list",
                "chat.completion",
                "text_completion",
            )
    assert sound.log.count('"GET /v1/models HTTP/1.1" 200') == 2


def test_what_a_recipe_does_not_promise_is_not_asked(servers):
    primary, _ = servers.pair(**QUICK)
    found = verify(plan_for(primary.url), random_weights=True)
    assert (results(found)["tool call"], results(found)["reasoning"], found.result) == (
        "skipped",
        "skipped",
        "passed",
    )


def test_a_garbled_rank_is_named_and_the_rest_is_asked_of_the_other(servers):
    primary = one_rank_fails(servers, "garbled-rank")
    found = verify(plan_for(primary.url), random_weights=True)
    assert [proof.check for proof in found.failed] == ["rank 1"]
    assert re.fullmatch(
        r'garbled: "!{24}", where the others answer " .*" \(server 1 on 127\.0\.0\.1\)',
        detail(found, "rank 1"),
    )
    assert detail(found, "chat").endswith("(asked of rank 0)")
    assert "X-data-parallel-rank: 0" in next(
        proof.curl for proof in found.proofs if proof.check == "chat"
    )


def test_a_service_that_is_garbled_as_a_whole_fails(servers):
    primary, _ = servers.pair(**QUICK, FAIL="garbled-rank")
    found = verify(plan_for(primary.url))
    assert [proof.check for proof in found.failed] == ["rank 0", "rank 1", "chat", "chinese"]
    assert verify(plan_for(primary.url), random_weights=True).result == "passed", (
        "weights that mean nothing"
    )


def test_a_rank_that_hangs_is_named(servers):
    primary = one_rank_fails(servers, "hang")
    found = verify(plan_for(primary.url), random_weights=True, timeout_s=2)
    assert [proof.check for proof in found.failed] == ["rank 1"]
    assert detail(found, "rank 1") == "no answer within 2 s (server 1 on 127.0.0.1)"


def test_without_an_answering_rank_nothing_else_is_asked(servers):
    """One hung rank of an expert-parallel group holds up all."""
    primary = one_rank_fails(servers, "hang", "--enable-expert-parallel")
    found = verify(plan_for(primary.url), timeout_s=2)
    assert [proof.check for proof in found.failed] == ["rank 0", "rank 1"]
    assert len(found.proofs) == 3


def test_a_model_that_calls_no_tool_is_asked_by_name_and_the_result_is_unclear(servers):
    server = servers.serve("--served-model-name", "tiny", *TOOLS, **QUICK, FAIL="no-tool-call")
    found = verify(plan_for(server.url, "features.tool_calling.enabled=true", "parallel.data=1"))
    assert results(found)["tool call"] == "unclear"
    assert 'by itself (tool_choice "auto"); named in tool_choice (guided decoding)' in detail(
        found, "tool call"
    )
    curl = next(proof.curl for proof in found.proofs if proof.check == "tool call")
    assert json.dumps(CLOSED_TOOL, ensure_ascii=False) in curl


def test_reasoning_in_another_field_than_the_recipe_promises_fails(servers):
    server = servers.serve(
        "--served-model-name", "tiny", *TOOLS, "--reasoning-parser", "minimax_m2", **QUICK
    )
    promised = plan_for(server.url, "features.tool_calling.enabled=true", "parallel.data=1")
    found = verify(promised, random_weights=True)
    assert results(found)["reasoning"] == "failed"
    own = plan_for(server.url, "features.reasoning_parser=minimax_m2", "parallel.data=1")
    assert "fills reasoning" in detail(verify(own, random_weights=True), "reasoning")


def test_another_served_name_is_reported(servers):
    server = servers.serve("--served-model-name", "other")
    found = verify(plan_for(server.url, "parallel.data=1"), random_weights=True)
    assert detail(found, "models") == "tiny is not listed, only other"
    assert detail(found, "chat") == "HTTP 404: The model `tiny` does not exist."


def test_an_unreachable_service_is_asked_once(tmp_path):
    found = verify(plan_for(f"http://127.0.0.1:{free_port()}"))
    assert [(proof.check, proof.result) for proof in found.proofs] == [("models", "failed")]
    assert "no connection" in detail(found, "models")


def test_the_key_is_sent_and_never_shown(servers):
    server = servers.serve(
        "--served-model-name", "tiny", **QUICK, environ={KEY_VARIABLE: "hush-hush"}
    )
    plan = plan_for(server.url, "parallel.data=1", f"secrets=[{KEY_VARIABLE}]")
    assert key_variable(plan) == KEY_VARIABLE
    found = verify(plan, "hush-hush", random_weights=True)
    assert found.result == "passed"
    assert all(f'"Authorization: Bearer ${KEY_VARIABLE}"' in proof.curl for proof in found.proofs)
    assert "hush-hush" not in repr(found)
    refused = verify(plan, "wrong-key", random_weights=True)
    assert detail(refused, "models") == f"HTTP 401: the service rejects the key in ${KEY_VARIABLE}"
    assert len(refused.proofs) == 1
    assert "wrong-key" not in repr(refused)
    assert "does not name" in detail(verify(plan_for(server.url)), "models")


def test_without_a_key_none_is_named(sound):
    assert key_variable(plan_for(sound.url)) == ""


@pytest.fixture
def deployment(monkeypatch):
    """A handle whose controller answers with a phase, a plan and a recipe."""

    def make(plan, phase=Phase.READY):
        now = {"now": 1.0, "created_at": 0.0, "phase_since": 0.0}
        status = Status("d", "local-dual", phase, 1, plan.endpoint, plan.served_name, **now)
        controller = SimpleNamespace(
            status=lambda: status, describe=lambda _group: (read("local-dual"), plan, {})
        )
        handle = Deployment("d")
        monkeypatch.setattr(handle, "_controller", lambda: controller)
        return handle

    return make


def test_a_deployment_reads_the_key_from_the_callers_environment(servers, deployment, monkeypatch):
    server = servers.serve(
        "--served-model-name", "tiny", **QUICK, environ={KEY_VARIABLE: "hush-hush"}
    )
    handle = deployment(plan_for(server.url, "parallel.data=1", f"secrets=[{KEY_VARIABLE}]"))
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(RecipeError, match=f"{KEY_VARIABLE} is not set"):
        handle.verify()
    monkeypatch.setenv(KEY_VARIABLE, "hush-hush")
    assert handle.verify().result == "passed"


def test_a_deployment_that_is_not_ready_is_not_asked(deployment):
    with pytest.raises(NotReadyError, match="restarting"):
        deployment(plan_for("http://127.0.0.1:1"), Phase.RESTARTING).verify()


async def test_it_also_runs_inside_an_event_loop(servers):
    server = servers.serve("--served-model-name", "tiny", **QUICK)
    assert verify(plan_for(server.url, "parallel.data=1"), random_weights=True).result == "passed"


@pytest.mark.parametrize(
    "body", ["null", "[]", '{"choices": []}', '"text"', "no JSON", '{"choices": [{}]}']
)
async def test_an_invalid_answer_is_a_problem_and_no_crash(body, mute_service):
    async with ChatClient(mute_service(body), None, 30) as asker:
        for question in (models(), english("m"), fixed_prompt("m", 0)):
            answer = await asker.ask(question)
            assert answer.problem or answer.value in ((), ChatReply())
            assert not answer.closed


@pytest.fixture
async def mute_service():
    """A server that gives the same body to every request."""
    import asyncio

    bodies = [b""]

    async def talk(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        await reader.readexactly(int(length[1]) if length else 0)
        body = bodies[0]
        head = (
            f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        )
        writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)

    def answering(body):
        bodies[0] = body.encode()
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"

    yield answering
    server.close()
