"""What in vLLM and vllm-ascend names a device type or a C++ operator, changed as it is imported.

Each entry of `_PATCHES` is a module and the function that changes it right after its import. All
other lines of both packages run as they were released.
"""

import importlib.abc
import importlib.util
import sys
import types
from unittest.mock import MagicMock

import torch

from torch_npu import device


def install() -> None:
    """Watch for the imports. torchvision, which has no build beside a CPU's torch, is a mock."""
    sys.meta_path.insert(0, _Finder())
    sys.meta_path.append(_Torchvision())
    _declare_torchvision()


class _Finder(importlib.abc.MetaPathFinder):
    """Finds each module of `_PATCHES` once, and runs its patch after the module's own code."""

    def __init__(self) -> None:
        self._left = dict(_PATCHES)

    def find_spec(self, name, path=None, target=None):
        patch = self._left.pop(name, None)
        if patch is None:
            return None
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_patch(module) -> None:
            execute(module)
            patch(module)

        spec.loader.exec_module = execute_and_patch
        return spec


class _Mock(types.ModuleType):
    """A module that has every name."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=f"{self.__name__}.{name}")


class _Torchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds torchvision and all below it: image processors import it, and are not used here."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != "torchvision":
            return None
        return importlib.util.spec_from_loader(name, self, is_package=True)

    def create_module(self, spec):
        return _Mock(spec.name)

    def exec_module(self, module) -> None:
        pass


def _patch_custom_ops(module) -> None:
    """vLLM registers its own operators for the device: register them for the CPU."""
    register = module.direct_register_custom_op

    def register_for_cpu(*args, **kwargs):
        return register(*args[:6], **{**kwargs, "dispatch_key": "CPU"})

    module.direct_register_custom_op = register_for_cpu


def _patch_platform(module) -> None:
    """The platform's device type is the CPU; its memory is the simulated one."""
    platform = module.NPUPlatform
    platform.device_type = "cpu"
    platform.dispatch_key = "CPU"
    platform.is_pin_memory_available = classmethod(lambda cls: False)
    platform.mem_get_info = staticmethod(device.memory_info)
    platform.memory_stats = staticmethod(device.memory_stats)
    for name in ("memory_reserved", "memory_allocated", "max_memory_allocated"):
        setattr(platform, name, staticmethod(device.zero))
    for name in ("empty_cache", "reset_peak_memory_stats", "synchronize"):
        setattr(platform, name, staticmethod(device.nothing))


def _patch_worker(module) -> None:
    """vllm-ascend's C++ operators, and the worker's device."""
    from torch_npu import kernels

    torch.ops._C_ascend = kernels.AscendOperators()
    torch.ops.vllm.split_qkv_tp_rmsnorm_rope = kernels.split_qkv_norm_rope
    init_device = module.NPUWorker._init_device

    def init_on_cpu(worker):
        init_device(worker)
        return device.CPU

    module.NPUWorker._init_device = init_on_cpu


def _patch_block_table(module) -> None:
    """The one Triton kernel of the path."""
    from torch_npu import kernels

    module._compute_slot_mapping_kernel = kernels.SlotMapping()


def _patch_message_queue(module) -> None:
    """A reader of the message queue sleeps at once; released, it spins for a second first.

    On real nodes each process has a core to spin on. Here some ten processes share two.
    """
    module.SpinCondition.__init__.__defaults__ = (0.0,)


def _declare_torchvision() -> None:
    """vllm-ascend registers a replacement of torchvision's nms, which must have been declared."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    boxes = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    for name in ("nms", "qnms"):
        try:
            library.define(f"{name}{boxes}")
        except RuntimeError:  # a real torchvision has declared it
            continue
    _kept.append(library)


_kept: list = []
"""torch forgets the declarations of a library that is collected."""

_PATCHES = {
    "vllm.utils.torch_utils": _patch_custom_ops,
    "vllm_ascend.platform": _patch_platform,
    "vllm_ascend.worker.worker": _patch_worker,
    "vllm_ascend.worker.block_table": _patch_block_table,
    "vllm.distributed.device_communicators.shm_broadcast": _patch_message_queue,
}
