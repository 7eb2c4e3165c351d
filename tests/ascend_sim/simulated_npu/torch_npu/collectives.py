"""Collectives: gloo in HCCL's place. HCCL itself has no build for a CPU."""

import torch
import torch.distributed as dist


class _HcclBackend:
    """What vllm-ascend asks of HCCL's backend object: the name of a communicator."""

    def get_hccl_comm_name(self, *args, **kwargs) -> str:
        return "simulated"

    def __getattr__(self, name: str):
        return lambda *args, **kwargs: None


def install() -> None:
    """Replace the backend of every process group of this process."""
    init_process_group, new_group = dist.init_process_group, dist.new_group
    get_backend = dist.ProcessGroup._get_backend

    def init_by_gloo(backend=None, *args, **kwargs):
        for name in ("pg_options", "device_id"):
            kwargs.pop(name, None)
        return init_process_group("gloo", *args, **kwargs)

    def new_gloo_group(*args, **kwargs):
        return new_group(*args, **{**kwargs, "backend": "gloo", "pg_options": None})

    def backend_of(group, device):
        return _HcclBackend() if str(device).startswith("npu") else get_backend(group, device)

    def barrier(group=None, async_op=False, device_ids=None):
        return dist.all_reduce(torch.zeros(1, device="cpu"), group=group)

    dist.is_hccl_available = lambda: True
    dist.init_process_group = init_by_gloo
    dist.new_group = new_gloo_group
    dist.ProcessGroup._get_backend = backend_of
    dist.barrier = dist.distributed_c10d.barrier = barrier
