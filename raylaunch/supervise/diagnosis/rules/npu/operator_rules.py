"""Operators of ATB (package NNAL) and aclnn that refuse their input, without an error block."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason
from raylaunch.supervise.diagnosis.rules.cann_blocks import find_blocks
from raylaunch.supervise.diagnosis.rules.error_codes import find_code, for_experts
from raylaunch.supervise.diagnosis.tracebacks import Raised, find_exceptions

_ATB_STEP = re.compile(
    r"\b([A-Z]\w{2,60}(?:Operation|Runner)\w{0,20}) (setup|execute|create|[Ii]nfer ?[Ss]hape) "
    r"(?:failed|fail|error)\b|"
    r"\b([A-Z]\w{2,60}Operation) CreateOperation fail|"
    r"compiler_depend\.ts:\d{1,6}\] setup failed|raised from OperationSetup at|"
    r"\b([A-Z]\w{2,60}Operation)\w{0,10} (?:invalid|unsupported|not support)[^\n]{0,80}"
)
_ACLNN_STATUS = re.compile(
    r"\b(aclnn[A-Z]\w{1,60}?)(?:GetWorkspaceSize)? ?(?:failed|fail|error)?[^\n]{0,24}?"
    r"(?:aclnnStatus|ERROR|ret|status|errno|error no is|error:) ?[=:]? ?([135]61\d{3})\b|"
    r"\blaunch failed for (\w{3,60}), errno: ?([135]61\d{3})\b"
)
_NOT_LAUNCHED = re.compile(r"(?<!\w)([A-Z][A-Za-z]\w{2,60}) launch kernel failed\b")
_NO_BACKEND = re.compile(
    r"Could not run '((\w{2,40})::[\w.]{2,80})' with arguments from the "
    r"'(CPU|NPU|PrivateUse1)' backend"
)
_ACLNN_DETAIL = re.compile(
    r"\b(aclnn[A-Z]\w{1,60}?)(?:GetWorkspaceSize)? failed,? ?detail: ?((?:E\w\d{4}|E\d{5}):? ?"
    r"(?:Inner Error!?)?)\s{0,2}$",
    re.MULTILINE,
)
_MORE_BELOW = re.compile(r"\bE[A-Z]?\d{4,5}\b|\[PID: ")
_ATB_CALL = re.compile(r"torch_npu\.(_?npu_\w{2,60})\(")
_CHIP = re.compile(r"(?i)\b(310p\d?|_310p|ascend310\w{0,4})\b")
_ATB_LOG = (
    "ATB's own log names the check: set `env.ATB_LOG_LEVEL: ERROR` and `env.ATB_LOG_TO_STDOUT: 1` "
    "(before CANN 8.3 ASDOPS_LOG_LEVEL and ASDOPS_LOG_TO_STDOUT), or see ~/atb/log and "
    "~/ascend/log/atb."
)


def read_operators(log: ServerLog) -> Iterator[Reading]:
    """Yield the operators that failed by name, each once."""
    seen: set[str] = set()
    for line, match in log.errors.find(_ATB_STEP):
        name = match[1] or match[3] or match[4] or ""
        # The line without a name repeats one with it, or is all that an old torch_npu writes.
        if name not in seen and (name or not seen):
            seen.add(name)
            step = "creation" if match[3] else (match[2] or "setup").lower()
            yield _atb(log, line, name, step)
    for raised in find_exceptions(log):
        if raised.type == "RuntimeError" and not seen and (name := _atb_call(raised)):
            seen.add(name)
            yield _atb(log, raised.line, name, "setup")
    yield from _without_a_code(log)
    for line, match in log.errors.find(_ACLNN_DETAIL):
        below = log.cleaned[line + 1] if line + 1 < len(log.cleaned) else ""
        if not _MORE_BELOW.search(below) and match[1] not in seen:
            seen.add(match[1])
            yield _inner(line, match[1], match[2], _package(log, line))
    in_blocks = {index for block in find_blocks(log) for index in block.lines}
    for line, match in log.errors.find(_ACLNN_STATUS):
        name = match[1] or match[3]
        known = find_code(match[2] or match[4], log.codes)
        if known is None or name in seen or (match[3] and line in in_blocks):
            continue
        seen.add(name)
        yield Reading(
            reason(
                "aclnn-failed",
                f"{known.cause}: {name} (code {known.code}).",
                f"{known.remedy.removeprefix('Read the EZ block beside it. ')} {for_experts(name)}"
                "If it is an operator of a package of its own, source that package's set_env.bash "
                "(ASCEND_CUSTOM_OPP_PATH), built for this CANN and NPU. The newest "
                "`~/ascend/log/debug/plog/plog-PID_*.log` of this process names the argument.",
                known.source,
                known.kind,
            ),
            line,
            rank=Rank.HINT,
            certain=False,
        )


def _without_a_code(log: ServerLog) -> Iterator[Reading]:
    """Yield the operators that were not launched, or have no code for the device, each once."""
    seen: set[str] = set()
    for line, match in log.errors.find(_NOT_LAUNCHED):
        # `cann_blocks` reads a line with a code.
        if match[1] not in seen and not _MORE_BELOW.search(log.cleaned[line]):
            seen.add(match[1])
            yield _not_launched(line, match[1])
    for line, match in log.errors.find(_NO_BACKEND):
        if match[1] not in seen:
            seen.add(match[1])
            yield _no_backend(line, match)


def _not_launched(line: int, name: str) -> Reading:
    """Read the last line of an aclnn call: the operator gave no output, so it was not launched."""
    return Reading(
        reason(
            "operator-not-launched",
            f"The operator {name} of CANN could not be launched: it does not take the shapes, the "
            "mask or the mode (a captured graph) in which this release of vllm-ascend calls it "
            "for this model.",
            "Set `args.enforce-eager: true` first (models for embeddings and scores do not gain by "
            "graphs), or use a newer release or image of vllm-ascend. The newest "
            "`~/ascend/log/debug/plog/plog-PID_*.log` of this process names the check.",
            "aclnn; vllm-ascend#11720, #10757",
            "deterministic",
        ),
        line,
        rank=Rank.HINT,
        certain=False,
    )


def _no_backend(line: int, match: re.Match[str]) -> Reading:
    """Read that torch has no code of an operator for the device of its tensors."""
    owner = {"npu": "torch_npu", "aten": "torch_npu", "vllm": "vllm-ascend", "_C": "vLLM"}
    package = owner.get(match[2], "vllm-ascend" if match[2].startswith("_C") else match[2])
    cpu = match[3] == "CPU"
    where = (
        "the CPU: NPUs lack it, so that torch falls back to the CPU, or a part of the model lies "
        "there"
        if cpu
        else "the NPU"
    )
    offload = " Leave out what puts weights or tensors on the CPU (offloading)." if cpu else ""
    return Reading(
        reason(
            "operator-missing",
            f"The operator {match[1]} has no code for {where}. The installed {package} is of "
            "another release than vLLM, its plug-in was not loaded, or it does not support what "
            "calls the operator.",
            f"Install the vLLM, vllm-ascend and torch_npu that belong together (vllm-ascend's "
            "table of versions), or use the release's image; the log of a good start has `Platform "
            f"plugin ascend is activated`. If they do, use a newer release of {package}.{offload}",
            "torch dispatcher; vllm-ascend#16",
            "deterministic",
        ),
        line,
        rank=Rank.HINT,
        certain=False,
    )


def _atb_call(raised: Raised) -> str:
    """Return the operator of an exception in torch_npu's calls of ATB; "" for any other."""
    frames = raised.frames[:5]
    if not any("op_plugin/atb" in frame.path for frame in frames):
        return ""
    if not re.match(r"setup failed|execute failed|run failed", raised.message):
        return ""
    called = (_ATB_CALL.search(frame.code) for frame in frames)
    return next((found[1] for found in called if found), "of ATB")


def _inner(line: int, name: str, said: str, package: str) -> Reading:
    """Read an operator that failed inside CANN, where the log has no text for it."""
    return Reading(
        reason(
            "aclnn-failed",
            f"The operator {name} failed inside CANN ({said.strip(' :')}); this log has no reason: "
            f"CANN and {package} are of releases that do not belong together, or the kernels "
            "package for this NPU is missing.",
            f"Install the CANN release (toolkit and kernels) that this {package} names, or use the "
            "release's image. The newest `~/ascend/log/debug/plog/plog-PID_*.log` of this process "
            "has the first [ERROR] line.",
            "vLLM MindSpore plugin, FAQ",
            "deterministic",
        ),
        line,
        rank=Rank.HINT,
        certain=False,
    )


def _package(log: ServerLog, line: int) -> str:
    above = "\n".join(log.cleaned[max(0, line - 8) : line + 1])
    return "MindSpore" if "mindspore" in above.lower() else "torch_npu"


def _atb(log: ServerLog, line: int, name: str, step: str) -> Reading:
    chip = next((match[1] for _, match in log.errors.find(_CHIP)), "")
    operation = f"its operator `{name}`" if name else "an operator"
    on = f" on this NPU ({chip.strip('_')})" if chip else ""
    return Reading(
        reason(
            "atb-operation",
            f"ATB (package NNAL) failed in the {step} of {operation}{on}: it does not "
            "accept the shapes, types or mask that this release of vllm-ascend gives it for this "
            "model, or NNAL is of another release than torch_npu and CANN.",
            "Use a newer image of vllm-ascend made for this NPU generation, with NNAL, CANN and "
            "torch_npu of that image; try `args.enforce-eager: true` and, on an NPU without "
            f"bfloat16, `args.dtype: float16`. {_ATB_LOG}",
            "op-plugin OperationSetup; vllm-ascend#393, #6842",
            "deterministic",
        ),
        line,
        rank=Rank.HINT,
        certain=False,
    )
