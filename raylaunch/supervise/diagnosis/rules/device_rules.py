"""Kernels that fail on an NPU, as the device reports them: which core, which kernel, and why."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Reading, reason, shorten

# CANN runtime, device_error_core_proc.cc: one line per core, then the device's own explanation.
_CORE_ERROR = re.compile(
    r"(?:error from device\(chipId: ?(\d{1,3})[^\n]{0,100})?there is an? (?:exception of )?"
    r"((?:fftsplus )?(?:aicore|aivec|aivector|aicpu|sdma|mix)(?: \w{1,12})?) error"
    r"(?!, core id is \d{1,4}, error code = 0x[\da-f]{1,16}, dump info[^\n]{0,40}timeout)"
)
_TIMEOUT = re.compile(
    r"there is an? (?:exception of )?(aicore|aivec|aivector|aicpu|vector core) time ?out|"
    r"\[Error\]: (?:The )?(AI ?[Cc]ore|[Vv]ector [Cc]ore|[Aa]icpu) execution timed out"
)
_REMOTE = re.compile(r"SUSPECT REMOTE ERROR|suspect remote error|\b507057\b")
_ERROR_TEXT = re.compile(r"(?:errorStr|exist the following problems): ?([^\n.]{4,300})")
_OF_A_COPY = re.compile(r"\bsdma error|sdma copy error")
_REMEDY_OF_A_COPY = (
    "A copy met an address that is not mapped: an allocation failed before (look for 207001 or "
    "EL0004 above it, and lower `args.gpu-memory-utilization`), memory was freed too early (as "
    "beside another process on the same card that is in sleep mode: give each a card), or "
    "this release does not support this NPU generation (310P is left out of some: use a release "
    "and an image, `-310p`, that list it). If it comes again elsewhere, see whether `npu-smi "
    "info` shows an alarm."
)
_KERNEL = re.compile(
    r"(?:fault kernel_name|kernel_name|fault kernel name|kernelName|fault op_name)[=:] ?"
    r"([\w.:-]{3,160})|origin_op_name \[([\w.:-]{3,160})\]|"
    r"current working operator name is ([A-Z]\w{2,80})"
)
_TASK_DEVICE = re.compile(
    r"(?:Aicore|Aivec|AIV|Aicpu|(?:AI |AI Vector |Vector )Core|AI CPU) [Kk]ernel "
    r"(?:execute|execution) failed, device[_ ]id=(\d{1,3})"
)
_NEAR_LINES = 40
_LINES_ABOVE = 12
_CORES = {
    "aicore": "AI core",
    "aivec": "vector core",
    "aivector": "vector core",
    "aicpu": "AI CPU",
    "sdma": "SDMA engine",
    "mix": "AI core",
}
_REMEDY = (
    "It is an operator's defect, a wrong address or size given to it, or the card. Use a newer "
    "image of vllm-ascend (CANN and operators in it), with the driver that its CANN names; until "
    "then switch off the feature that calls the kernel ({off}). See whether "
    "`npu-smi info` shows an alarm; the plog of the process under `~/ascend/log/debug/plog` has "
    "the operator's inputs."
)
_OF_EXPERTS = re.compile(
    r"(?i)moe_?(?:distribute|init_?routing|gating|finalize|compute)|Dispatch_?FFN|Mega_?Moe"
)
_REMEDY_OF_EXPERTS = (
    "It is an operator of expert parallelism, of vllm-ascend or CANN: use a newer image of "
    "vllm-ascend made for this NPU generation, with the driver that its CANN names, the same on "
    "all nodes. Until then start with `parallel.expert: false`{fused}. If it comes "
    "under load, look for the rank that failed first, and check the links between the nodes "
    "(`hccn_tool -i N -link -g`, `-ping`)."
)


_FUSED = re.compile(r"(?i)Dispatch_?FFN|Mega_?Moe")
_FUSED_OFF = " or with no `env.VLLM_ASCEND_ENABLE_FUSED_MC2`"
# CANN's check of the indices of a gather or scatter, a kernel of its own.
_OF_AN_INDEX = re.compile(r"(?i)kernel\w{0,12}[=: ]{1,3}IndexCheck")
_REMEDY_OF_AN_INDEX = (
    "An index is outside of the tensor it points into: a token id, a position or a slot of the KV "
    "cache that this release computed wrongly (mostly with speculative decoding, prefix caching "
    "or several KV cache groups), or a length above the model's. Start without "
    "`features.speculative` and `args.async-scheduling`, with `args.enforce-eager: true`, and use "
    "a newer image of vllm-ascend; `env.ASCEND_LAUNCH_BLOCKING: 1` shows the Python line."
)
_OF_CONTEXT = re.compile(
    r"(?i)lightning_?indexer|sparse_?(?:flash|attention)|sparse_?and_?compress"
)
_OFF = (
    "`args.enforce-eager: true` for graphs, no `features.speculative`, no `multistream_*` in "
    "`args.additional-config`"
)
_BY_KERNEL: tuple[tuple[str, str], ...] = (
    (r"(?i)mla_?(?:prolog|preprocess)", f"`env.VLLM_ASCEND_ENABLE_MLAPO: 0`; {_OFF}"),
    (r"(?i)kernel\w{0,12}[=: ]{1,3}\w{0,20}aiv_?all_?", "no `env.HCCL_OP_EXPANSION_MODE: AIV`"),
    (
        r"(?i)gated_?delta|causal_?conv1d|mamba",
        f"no `features.speculative`, `args.enable-prefix-caching: false`; {_OFF}",
    ),
)
_OFF_OF_CONTEXT = "`parallel.decode_context: 1`, `parallel.prefill_context: 1`; " + _OFF
_OF_REMOTE = (
    "The kernel reads and writes the memory of other NPUs directly, and one of them did not "
    "answer or is not reachable in that way: on A3 all ranks of a group must be in one super node "
    "(HCCS), on A2 the RoCE links must be up (`hccn_tool -i N -link -g`, `-ping`). Where only "
    "RoCE joins the hosts, start with `parallel.expert: false` or an expert group within one "
    "host. Read the log of the rank that stops first. If all are reachable, use a newer image of "
    "vllm-ascend, with the driver that its CANN names."
)
_OF_A_TIMEOUT = (
    "A kernel that exchanges data waits for the other ranks: read the log of the rank that stops "
    "first. If it comes in the first run (profile_run, warm-up), firmware and driver of a host "
    "are older than this CANN needs: upgrade both to what its release notes name, the same on "
    "all hosts, and use its image; until then `parallel.expert: false`. If it comes under load, "
    "lower `args.max-num-batched-tokens` (with decode-only instances, to the largest captured "
    "size), and check the links (`hccn_tool -i N -stat -g`)."
)


_COLLECTIVE = re.compile(
    r"libccl_kernel|RunAicpuRpc|(?i:kernelName=\w*(?:hccl|allreduce|alltoall))"
)
_EXCHANGES = re.compile(
    r"(?i)all_?(?:gather|reduce|to_?all)|reduce_?scatter|distribute|dispatch|hccl"
)
_OF_A_COLLECTIVE = (
    "It is a collective of HCCL that the NPU's own CPUs carry out. Two collectives of one group at "
    "the same time break it: switch off what overlaps them (`env.VLLM_ASCEND_ENABLE_FLASHCOMM1`, "
    "dual batch, multistream options of `args.additional-config`); try "
    "`env.HCCL_OP_EXPANSION_MODE: AIV`. Compare CANN and driver on all nodes with the image's, and "
    "read the plog of the other ranks."
)


# The kernels of dispatch and combine share HCCL's buffer and do not check its size before CANN 8.3
# (vllm-ascend#2674, #6131).
_EXPERT_EXCHANGE = re.compile(
    r"(?i)kernel\w{0,12}[=: ]{1,3}\w{0,20}(?:MoeDistribute|dispatch|combine|alltoall)"
)
_OF_AN_EXCHANGE = (
    "First raise `env.HCCL_BUFFSIZE` (MiB; 1024 or 2048 on all nodes): the exchange of the experts "
    "works in that buffer, and one that is too small ends so. Else lower "
    "`args.max-num-batched-tokens` and `args.max-num-seqs`, or set `parallel.expert: false`; with "
    "a large buffer it is a defect of this release."
)


def read_devices(log: ServerLog) -> Iterator[Reading]:
    """Yield one reading per log: the first kernel that failed, with what the device says of it."""
    cores = list(log.errors.find(_CORE_ERROR))
    tasks = list(log.errors.find(_TASK_DEVICE))
    if not cores and not tasks:
        yield from _timeouts(log)
        return
    first = min(line for line, _ in (*cores, *tasks))
    text = _text_near(log, first)
    yield Reading(
        reason(
            "npu-kernel-fault",
            f"A kernel failed on {_device(cores, tasks)}: {_core(cores, text)}{_explained(text)}.",
            _remedy(text),
            "CANN device_error_core_proc.cc; vllm-ascend#2976, #16654",
            "transient",
        ),
        first,
        covers=frozenset(line for line, _ in (*cores, *tasks)),
        certain=False,
    )


def _text_near(log: ServerLog, first: int) -> str:
    lines = range(first - _LINES_ABOVE, first + _NEAR_LINES + 1)
    return "\n".join(log.cleaned[index] for index in log.errors.lines if index in lines)


def _timeouts(log: ServerLog) -> Iterator[Reading]:
    """Yield the first kernel that did not end in time, if the log names it."""
    for line, match in log.errors.find(_TIMEOUT):
        text = _text_near(log, line)
        kernel = _kernel(text)
        if not kernel:
            return
        word = (match[1] or match[2]).lower().replace(" ", "")
        core = _CORES.get(word, "vector core" if "vector" in word else "AI core")
        waits = _EXCHANGES.search(kernel)
        yield Reading(
            reason(
                "npu-kernel-fault",
                f"A kernel did not end in time on the NPU: the {core} timed out in kernel "
                f"`{kernel}`" + (", which exchanges data with other ranks." if waits else "."),
                _OF_A_TIMEOUT if waits else _remedy(text),
                "CANN device_error_core_proc.cc; vllm-ascend#12430, #9887",
                "transient",
            ),
            line,
            certain=False,
        )
        return


def _remedy(text: str) -> str:
    if _COLLECTIVE.search(text):
        return _OF_A_COLLECTIVE
    if "out of range" in text and _EXPERT_EXCHANGE.search(text):
        return _OF_AN_EXCHANGE
    if _OF_A_COPY.search(text):
        return _REMEDY_OF_A_COPY
    if _OF_AN_INDEX.search(text):
        return _REMEDY_OF_AN_INDEX
    if _OF_EXPERTS.search(text):
        if _REMOTE.search(text):
            return _OF_REMOTE
        return _REMEDY_OF_EXPERTS.format(fused=_FUSED_OFF if _FUSED.search(text) else "")
    if _OF_CONTEXT.search(text):
        return _REMEDY.format(off=_OFF_OF_CONTEXT)
    off = (each for words, each in _BY_KERNEL if re.search(words, text))
    return _REMEDY.format(off=next(off, _OFF))


def _kernel(text: str) -> str:
    found = _KERNEL.search(text)
    return (found[1] or found[2] or found[3]) if found else ""


def _device(cores: list[tuple[int, re.Match[str]]], tasks: list[tuple[int, re.Match[str]]]) -> str:
    numbers = [match[1] for _, match in (*cores, *tasks) if match[1]]
    return f"NPU {numbers[0]}" if numbers else "an NPU"


def _core(cores: list[tuple[int, re.Match[str]]], text: str) -> str:
    if not cores:
        core = "AI CPU" if re.search(r"[Aa]i ?cpu [Kk]ernel|AI CPU kernel", text) else "core"
        return f"the {core} raised an exception"
    words = cores[0][1][2].split()
    core = next((_CORES[word] for word in words if word in _CORES), words[-1])
    return f"the {core} raised an exception ({cores[0][1][2]} error)"


def _explained(text: str) -> str:
    """Return what the device says about the fault, and the kernel it names."""
    parts = []
    if said := _ERROR_TEXT.search(text):
        parts.append(f": {shorten(said[1], 200)}")
    if kernel := _kernel(text):
        what = ", a collective of HCCL" if _COLLECTIVE.search(text) else ""
        parts.append(f" in kernel `{kernel}`{what}")
    if _REMOTE.search(text):
        parts.append("; the NPU suspects a remote NPU, whose memory the kernel uses")
    return "".join(parts)
