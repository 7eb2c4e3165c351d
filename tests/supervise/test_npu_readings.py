"""Readings of classes of Ascend messages: each with words and values that no report has."""

from __future__ import annotations

import pytest

from raylaunch.supervise.diagnosis.root_cause import Diagnosis, diagnose_text

WORKER = "(Worker_TP0 pid=7) ERROR 10-15 16:32:16 [multiproc_executor.py:822] "


def raised(path: str, function: str, code: str, exception: str) -> str:
    """Return a traceback of one frame as a worker logs it."""
    lines = [f'  File "{path}", line 7, in {function}', f"    {code}", exception]
    return "\n".join(WORKER + line for line in lines)


def plog(component: str, *said: str) -> str:
    stamp = "2026-03-01-10:00:00.123.456 [some_file.cc:77] [4211]"
    return "\n".join(f"[ERROR] {component}(4210,python3):{stamp}{each}" for each in said)


def diagnosed(text: str) -> Diagnosis:
    found = diagnose_text(text)
    assert found is not None
    assert not found.certain
    return found


@pytest.mark.parametrize(
    ("message", "chip"),
    [
        ("Unsupported soc version 241", "310B"),
        ("soc_version: 103 is not supported by this build", "first generation"),
        ("This operator does not support AscendDeviceType.A5", "A5"),
        ("Unknown chip Ascend950PR", "Ascend950PR"),
    ],
)
def test_a_generation_of_npu_that_is_refused_is_named(message: str, chip: str) -> None:
    text = raised("/w/vllm_ascend/utils.py", "check", "raise", f"RuntimeError: {message}")
    found = diagnosed(text)
    assert chip in found.cause
    assert "image" in found.remedy.lower()


@pytest.mark.parametrize("owner", ["NPUWorker", "AscendRejectionSampler", "ACLGraphWrapper"])
def test_what_vllm_misses_in_a_class_of_vllm_ascend_is_a_question_of_releases(owner: str) -> None:
    exception = f"AttributeError: '{owner}' object has no attribute 'take_turns'"
    text = raised("/w/vllm/vllm/v1/worker/base.py", "step", "x.take_turns()", exception)
    found = diagnosed(text)
    assert owner in found.cause
    assert "take_turns" in found.cause
    assert "belong together" in found.remedy


@pytest.mark.parametrize(
    ("component", "said", "words"),
    [
        ("ROCE", "ibv_create_qp: create qp failed, errno 12", "Cannot allocate memory"),
        ("HCCL", "ra register mr: RegGlobalMr failed, size[77]", "registered"),
        ("HCCL", "Socket recv fail, peer 192.0.2.9", "closed the connection"),
        ("HCCL", "HCCL_RDMA_TC[1999] is invalid, expect multiples of 4", "HCCL_RDMA_TC"),
        ("OP", "OpName:[aclnnAddLayerNorm_881] Infer Shape failed.", "aclnnAddLayerNorm"),
        ("RUNTIME", "TaskWait: stream sync timeout, timeout=400ms", "time-out"),
        ("GE", "FabricMemPool: open of the peer's block failed", "super node"),
        ("RUNTIME", "rtMemExportToShareableHandle: ErrCode=207000, desc=[x y]", "super node"),
    ],
)
def test_lines_of_a_component_are_read_by_their_subject(
    component: str, said: str, words: str
) -> None:
    found = diagnosed(plog(component, said))
    assert words in f"{found.cause} {found.remedy}"


@pytest.mark.parametrize(
    ("component", "where"), [("DRV", "dmesg"), ("TSD", "npu-smi"), ("TEFUSION", "kernels package")]
)
def test_a_line_without_a_subject_names_where_to_look_by_its_component(
    component: str, where: str
) -> None:
    found = diagnosed(plog(component, "Module forty-two went astray, code 77"))
    assert "went astray" in found.cause
    assert where in found.remedy


@pytest.mark.parametrize(
    ("function", "path", "first"),
    [
        ("get_pcp_mask", "vllm_ascend/attention/mask.py", "max-model-len"),
        ("_allocate_kv_cache_tensors", "vllm/v1/worker/gpu_model_runner.py", "gpu-memory"),
        ("create_weights", "vllm_ascend/quantization/w4.py", "parallel.tensor"),
        ("compute_logits", "vllm/model_executor/models/m.py", "max-num-seqs"),
    ],
)
def test_memory_is_short_for_what_the_traceback_asks_it_for(
    function: str, path: str, first: str
) -> None:
    message = "RuntimeError: NPU out of memory. Tried to allocate 3.00 GiB (NPU 0; 60.00 GiB total"
    text = raised(f"/w/{path}", function, "torch.empty(n)", message)
    found = diagnose_text(text)
    assert found is not None
    assert function in found.cause
    assert first in found.remedy[:80]


@pytest.mark.parametrize(
    "line",
    [
        "[2026-03-01 10:00:00,123] LMCache ERROR: 'store.engine.Pool' object has no attribute 'get'",
        f"{WORKER}AttributeError: 'memcache.api.Client' object has no attribute 'put_batch'",
    ],
)
def test_a_class_of_a_compiled_package_names_the_package(line: str) -> None:
    found = diagnosed(line)
    assert found.id == "versions-differ"
    assert "pip list" in found.remedy


def test_a_field_that_vllm_ascend_misses_in_a_models_configuration_is_its_release() -> None:
    lines = [
        '  File "/w/vllm_ascend/ops/rope.py", line 7, in init_rope',
        "    base = config.rope_theta",
        '  File "/v/site-packages/transformers/configuration_utils.py", line 9, in __getattribute__',
        "    return super().__getattribute__(key)",
        "AttributeError: 'OtherVLConfig' object has no attribute 'rope_theta'",
    ]
    found = diagnosed("\n".join(WORKER + line for line in lines))
    assert "vllm_ascend/ops/rope.py" in found.cause
    assert "rope_theta" in found.cause
    assert "newer release" in found.remedy


def test_an_operator_that_cannot_be_traced_is_named() -> None:
    message = (
        "RuntimeError: Failed running call_function _C_ascend.swish(*(FakeTensor(...)), **{}):"
    )
    found = diagnosed(WORKER + message)
    assert "_C_ascend.swish" in found.cause
    assert "enforce-eager" in found.remedy


def test_the_lines_below_a_message_may_advise() -> None:
    lines = [
        '  File "/v/site-packages/transformers/utils/versions.py", line 44, in compare',
        "    raise ImportError(",
        "ImportError: other-package<2 is required for this module, but found other-package==3.1",
        "To fix: run `pip install 'other-package<2'` on each node.",
    ]
    found = diagnosed("\n".join(lines))
    assert "pip install 'other-package<2'" in found.remedy


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("value 4 for parameter deviceId is invalid. Expected value: [0, 4).", "sees 4 NPUs"),
        ("value [9] for argument [phyId] is invalid. Valid range: [0, 0).", "sees no NPU"),
        ("value 77 for parameter streamPriority is invalid. Expected value: [0, 7].", "[0, 7]"),
        ("Indices 151936 out of bounds [0, 151936)", "vocabulary"),
        ("Index value 32768 is out of range [0 32768)!", "max-model-len"),
    ],
)
def test_a_refused_value_is_named_with_what_is_valid(said: str, words: str) -> None:
    found = diagnosed(f"{WORKER}RuntimeError: call failed\n{WORKER}{said}")
    assert words in f"{found.cause} {found.remedy}"


def test_the_ranks_that_did_not_come_are_named() -> None:
    text = plog(
        "HCCL",
        "[InitGroupStage]topo exchange server get socket timeout! timeout[240 s]",
        "[InitGroupStage]total connected num is [2],line num is [1]",
        "[InitGroupStage]need connect rankNum is [4]",
        "[InitGroupStage]connected rankinfo[LINE 0]: [0000000000000000],[0000000000000003];",
    )
    assert "2 of 4 came, missing are the ranks 1, 2" in diagnosed(text).cause


@pytest.mark.parametrize("address", ["192.0.2.7 : 60000", "192.0.2.7%eth1 : 61000"])
def test_the_root_that_a_rank_cannot_reach_is_named(address: str) -> None:
    said = f"[TopoInfoExchangeAgent][Setup]TopoExchangeAgent: connect server[{address}] failed"
    assert "192.0.2.7" in diagnosed(plog("HCCL", said)).cause


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("RuntimeError: MoeGatingOperation CreateOperation failed.", "MoeGatingOperation"),
        ("RuntimeError: Call aclnnSinkhorn failed, detail:E39999: Inner Error", "aclnnSinkhorn"),
        (
            "RuntimeError: call aclnnRope failed, detail:EZ1001: cosTable of Rope is nullptr.",
            "without an input",
        ),
    ],
)
def test_an_operator_that_fails_without_a_code_is_named(said: str, words: str) -> None:
    found = diagnose_text(WORKER + said)
    assert found is not None
    assert words in found.cause
    assert "image" in found.remedy


def test_a_failed_collective_on_the_npus_own_cpus_is_no_operator_of_the_model() -> None:
    said = (
        "Aicpu kernel execute failed, device_id=3, soName=libccl_kernel.so, kernelName=Run_gather"
    )
    found = diagnosed(WORKER + said)
    assert "collective" in found.cause
    assert "HCCL_OP_EXPANSION_MODE" in found.remedy


def test_memory_that_cannot_be_registered_explains_a_transfer_that_failed() -> None:
    said = "E0620 10:12:07.404089 342420 ascend_direct_transport.cpp:11] Failed to connect to: x"
    text = said + "\n" + plog("HCCP", "tid:9,ra_typical_mr_reg : mr reg failed ret(-12)")
    found = diagnosed(text)
    assert found.id == "plog-memory"
    assert "Cannot allocate memory" in found.cause


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (
            "EE1001: [PID: 9] The argument is invalid.Reason: coreDim=70001 can't be greater than 9.",
            "Triton",
        ),
        (
            "EE1001: [PID: 9] The argument is invalid.Reason: blockDim=99999 exceeds the limit.",
            "Triton",
        ),
        ("EE9999: [PID: 9] wait failed: the capture mode does not allow it", "graph capture"),
    ],
)
def test_a_block_is_read_by_its_words(block: str, words: str) -> None:
    found = diagnose_text(f"{WORKER}{block}")
    assert found is not None
    assert words in found.cause


def test_mindie_kills_its_own_processes() -> None:
    found = diagnosed("ERR: Failed to init endpoint! Please check the service log.\nKilled")
    assert found.id == "mindie-init-failed"
    assert "log" in found.remedy
