"""The calls of CUDA and of the driver that failed inside NCCL."""

from __future__ import annotations

import re
from typing import NamedTuple

from raylaunch.supervise.diagnosis.signatures import Kind

_FAILURE = re.compile(r"Cuda failure (?:\d{1,4} )?'?([^'\n]{3,120})'?")


class _Call(NamedTuple):
    """Words of NCCL, what they mean, and what to do."""

    words: str
    cause: str
    remedy: str
    kind: Kind = "deterministic"


_CALLS = (
    _Call(
        words=r"Cuda failure[^\n]{0,8}out of memory",
        cause="A call of CUDA failed inside NCCL: out of memory. Its buffers are outside the share "
        "of memory that vLLM plans with, and nothing was left for them",
        remedy="Lower `args.gpu-memory-utilization`, and see whether another process holds memory "
        "of the GPU (`nvidia-smi`); while graphs are captured `env.NCCL_CUMEM_ENABLE: 0` or fewer "
        "sizes (`args.max-num-seqs`) need less.",
    ),
    _Call(
        words=r"peer access is not supported",
        cause="Two GPUs cannot read each other's memory (peer access is not supported between "
        "them), and NCCL tried it",
        remedy="Set `env.NCCL_P2P_DISABLE: 1` and `args.disable-custom-all-reduce: true`; update "
        "NCCL and the driver (some releases try it on GPUs without peer access). In a container "
        "give each process all GPUs of the server.",
    ),
    _Call(
        words=r"Cuda failure[^\n]{0,8}invalid argument",
        cause="A call of CUDA failed inside NCCL: invalid argument. A release of NCCL that is too "
        "old for the driver or for captured graphs does that, and so does memory of vLLM's own "
        "exchange that NCCL cannot share",
        remedy="Use a newer NCCL (the release's own image; `pip list | grep -i nccl`, and no "
        "VLLM_NCCL_SO_PATH to an old one), or set `args.disable-custom-all-reduce: true`; then "
        "compare the driver (`nvidia-smi`) with the CUDA of torch.",
    ),
    _Call(
        words=r"NCCL cannot be captured in a graph",
        cause="NCCL cannot take part in a captured graph: the driver of the GPUs is older than "
        "R465, or this NCCL was built with a CUDA older than 11.3",
        remedy="Update the driver on the host (`nvidia-smi` shows it) or use the NCCL of torch's "
        "own wheel (no VLLM_NCCL_SO_PATH); until then `args.enforce-eager: true`.",
    ),
    _Call(
        words=r"nvmlDeviceGetP2PStatus[^\n]{0,60}failed",
        cause="The driver does not tell NCCL how its GPUs reach each other (nvmlDeviceGetP2PStatus "
        "for P2P is refused): an integrated GPU (Jetson), a vGPU, or a driver without NVML's part",
        remedy="On such a GPU serve without several ranks (`parallel.tensor: 1`, "
        "`parallel.pipeline: 1`) or use a newer NCCL that accepts the answer; on others make the "
        "container's driver libraries those of the host (NVIDIA container toolkit).",
    ),
)


def explain_cuda_call(said: str) -> tuple[str, str, Kind] | None:
    """Say what the failed call in a warning of NCCL means, and what to do."""
    known = next((each for each in _CALLS if re.search(each.words, said)), None)
    if known:
        return known.cause, known.remedy, known.kind
    if found := _FAILURE.search(said):
        return (
            f"A call of CUDA failed inside NCCL: {found[1]}",
            (
                "For memory lower `args.gpu-memory-utilization`; otherwise compare the driver "
                "(`nvidia-smi`) with the CUDA of torch and NCCL, and see whether `dmesg -T` has an "
                "Xid."
            ),
            "transient",
        )
    return None
