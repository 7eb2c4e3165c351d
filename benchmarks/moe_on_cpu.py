"""A plug-in of vLLM for the test hosts: what vLLM 0.32 lacks to serve an MoE with dp > 1 on CPU.

Its CPU communicator has neither `all_gatherv` nor `reduce_scatterv` (NotImplementedError at the
first request), and its CPU experts take global expert numbers where they hold a part of the experts
only (they read past the end and die of SIGSEGV). All peers get the same plug-in (pair.py puts it on
the hosts).
"""

import functools
import inspect
from typing import Any


def register() -> None:
    """Entry point of the group `vllm.general_plugins`."""
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

    CpuCommunicator.all_gatherv = all_gatherv
    CpuCommunicator.reduce_scatterv = reduce_scatterv
    if not hasattr(
        CPUUnquantizedExperts.apply, "__wrapped__"
    ):  # vLLM loads plug-ins once in each process, at least
        CPUUnquantizedExperts.apply = with_local_experts(CPUUnquantizedExperts.apply)


def all_gatherv(self: Any, input_: Any, dim: int = 0, sizes: list[int] | None = None) -> Any:  # noqa: ANN401
    """Rows of all ranks, of which each has as many as `sizes` says; gloo gathers only equal shapes."""
    import torch

    assert dim == 0
    if isinstance(input_, list | tuple):
        return [all_gatherv(self, one, dim, sizes) for one in input_]
    rows = sizes or [input_.shape[0]] * self.world_size
    padded = input_.new_zeros((max(rows), *input_.shape[1:]))
    padded[: input_.shape[0]] = input_
    gathered = [torch.empty_like(padded) for _ in rows]
    torch.distributed.all_gather(gathered, padded, group=self.device_group)
    return torch.cat([one[:count] for one, count in zip(gathered, rows, strict=True)])


def reduce_scatterv(self: Any, input_: Any, dim: int = -1, sizes: list[int] | None = None) -> Any:  # noqa: ANN401
    """The rows of this rank, of the sum over all ranks."""
    import torch

    assert dim == 0
    rows = sizes or [input_.shape[0] // self.world_size] * self.world_size
    total = input_.float().contiguous()
    torch.distributed.all_reduce(total, group=self.device_group)
    first = sum(rows[: self.rank_in_group])
    return total[first : first + rows[self.rank_in_group]].to(input_.dtype).contiguous()


def with_local_experts(apply: Any) -> Any:  # noqa: ANN401
    """Number the experts as this rank holds them; those of other ranks count nothing here."""
    signature = inspect.signature(apply)

    @functools.wraps(apply)
    def wrapped(*args: Any, **named: Any) -> None:  # noqa: ANN401
        given = signature.bind(*args, **named).arguments
        if (numbers := given["expert_map"]) is not None:
            local = numbers[given["topk_ids"].long()]
            given["topk_weights"] = (given["topk_weights"] * (local >= 0)).contiguous()
            given["topk_ids"] = local.clamp_min(0).to(given["topk_ids"].dtype).contiguous()
        return apply(**given)

    return wrapped
