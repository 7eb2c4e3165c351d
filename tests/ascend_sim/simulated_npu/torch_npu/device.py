"""Devices, streams, events and memory of the simulated NPUs.

Streams run in order on a CPU, so waiting for one is no work. Memory: every NPU has 64 GiB, and the
free amount falls by 1 MiB with each question, so that no two readings are equal (vllm-ascend takes
their difference for what the weights took).
"""

import os
import types
from unittest.mock import MagicMock

import torch
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")
TOTAL_BYTES = 64 << 30
NAME = "Ascend910B3"
SOC_VERSION_A2 = 220

_free_bytes = [60 << 30]


class Event:
    """An event of a stream: it has always happened."""

    def __init__(self, *args, **kwargs) -> None:
        pass

    def record(self, *args) -> None:
        pass

    def wait(self, *args) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, other) -> float:
        return 0.0


class Stream(Event):
    """The one stream."""

    npu_stream = 0
    device = CPU

    def wait_stream(self, other) -> None:
        pass

    def wait_event(self, event) -> None:
        pass

    def record_event(self, event=None):
        return event or Event()

    def __enter__(self):
        return self

    def __exit__(self, *args) -> bool:
        return False


def memory_info(*args, **kwargs) -> tuple[int, int]:
    """Return (free, total) bytes of a device."""
    _free_bytes[0] -= 1 << 20
    return _free_bytes[0], TOTAL_BYTES


def memory_stats(*args, **kwargs) -> dict[str, int]:
    return {"allocated_bytes.all.peak": 0, "allocated_bytes.all.current": 0}


def visible_devices() -> int:
    """Return how many NPUs ASCEND_RT_VISIBLE_DEVICES names, 8 without it."""
    names = os.environ.get("ASCEND_RT_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    return len([name for name in names.split(",") if name])


def nothing(*args, **kwargs) -> None:
    """Do what the function does on a CPU."""


def zero(*args, **kwargs) -> int:
    return 0


def build_module() -> MagicMock:
    """Return `torch.npu`: the functions that vllm-ascend calls, and mocks of all others."""
    stream = Stream()
    module = MagicMock(name="torch.npu")
    module.Event = Event
    module.Stream = Stream
    module.current_stream = module.default_stream = lambda *args, **kwargs: stream
    module.stream = lambda given: given if given is not None else stream
    for name in ("set_device", "synchronize", "empty_cache", "reset_peak_memory_stats"):
        setattr(module, name, nothing)
    module.set_stream = nothing
    module.mem_get_info = memory_info
    module.memory_stats = memory_stats
    for name in ("memory_reserved", "memory_allocated", "max_memory_allocated", "current_device"):
        setattr(module, name, zero)
    module.device_count = visible_devices
    module.is_available = lambda: True
    module.get_device_name = lambda index=0: NAME
    module.get_soc_version = lambda: SOC_VERSION_A2
    module.get_device_properties = lambda *args: types.SimpleNamespace(
        name=NAME, total_memory=TOTAL_BYTES, cube_core_num=24, vector_core_num=48
    )
    return module


class _OnCpu(TorchFunctionMode):
    """Creates on the CPU what asks for an NPU, and pins no memory."""

    def __torch_function__(self, function, kinds, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        device = kwargs.get("device", "")
        # A number is a device of the accelerator, as `torch.npu.current_device()` returns it.
        if isinstance(device, int) or str(device).startswith("npu"):
            kwargs["device"] = CPU
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        if getattr(function, "__name__", "") == "pin_memory":
            return args[0]
        return function(*args, **kwargs)


def install() -> None:
    """Make torch's own device functions those of this module, for the whole process."""
    torch.Event = Event
    torch.Tensor.npu = torch.Tensor.pin_memory = lambda tensor, *args, **kwargs: tensor
    accelerator = torch.accelerator
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        setattr(accelerator, name, nothing)
    for name in ("memory_reserved", "memory_allocated", "max_memory_allocated"):
        setattr(accelerator, name, zero)
    accelerator.memory_stats = memory_stats
    accelerator.get_memory_info = memory_info
    _OnCpu().__enter__()
