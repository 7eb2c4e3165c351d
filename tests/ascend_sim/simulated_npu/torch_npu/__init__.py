"""A torch_npu whose NPUs are this machine's CPU: vllm-ascend 0.23.0.post1 serves on it, eagerly.

`import torch` loads it by the entry point `torch.backends`, as it loads the real one.

- `device`: devices, streams and memory. There is one device, the CPU, under every number.
- `collectives`: gloo takes the place of HCCL.
- `kernels`: the operators that a MiniMax-M2 shape needs, in plain torch.
- `mla_kernels`: those that a DeepSeek shape needs beside them.
- `patches`: the few lines of vLLM and vllm-ascend that name a device type or a C++ operator.

An operator without a kernel here raises NotImplementedError with its name, so that nothing is
answered by an operator that does not exist. Other names of torch_npu are mocks: vllm-ascend imports
many that this set-up does not call.
"""

import os
import sys
import types
from unittest.mock import MagicMock

import torch

from torch_npu import collectives, device, kernels, mla_kernels, patches

__version__ = "2.10.0.post4"

npu = device.build_module()
_C = MagicMock(name="torch_npu._C")
_C._NPUTaskGroupHandle = MagicMock
op_plugin = types.ModuleType("torch_npu.op_plugin")
profiler = types.ModuleType("torch_npu.profiler")
profiler.dynamic_profile = MagicMock(name="torch_npu.profiler.dynamic_profile")

_OPERATORS = {**kernels.OPERATORS, **mla_kernels.OPERATORS}
_others: dict[str, MagicMock] = {}


def autoload() -> None:
    """Be loaded: importing this module has done everything."""


def __getattr__(name: str):
    """Return the operator, refuse one without a kernel, or return a mock of anything else."""
    if name.startswith("__"):
        raise AttributeError(name)
    if name in _OPERATORS:
        return _OPERATORS[name]
    if name.startswith(("npu_", "_npu_")):
        return kernels.refuse(f"torch_npu.{name}")
    return _others.setdefault(name, MagicMock(name=f"torch_npu.{name}"))


def _register_modules() -> None:
    mocks = ("_inductor", "op_plugin.atb", "op_plugin.atb._atb_ops", "dynamo", "dynamo.torchair")
    modules = {name: MagicMock(name=f"torch_npu.{name}") for name in mocks}
    modules |= {"_C": _C, "_C._distributed_c10d": _C._distributed_c10d, "npu": npu}
    modules |= {"op_plugin": op_plugin, "profiler": profiler}
    for name, module in modules.items():
        sys.modules[f"torch_npu.{name}"] = module


# Both are read when torch._dynamo is imported: there is no compiler for these devices.
os.environ["TORCH_COMPILE_DISABLE"] = os.environ["TORCHDYNAMO_DISABLE"] = "1"
_register_modules()
torch.utils.rename_privateuse1_backend("npu")
torch.npu = sys.modules["torch.npu"] = npu
torch.version.cann = None
device.install()
collectives.install()
patches.install()
