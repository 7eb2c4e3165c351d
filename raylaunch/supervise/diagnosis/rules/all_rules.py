"""All layers below the signatures, in the order in which their readings are preferred."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Reading
from raylaunch.supervise.diagnosis.rules.cann_blocks import read_blocks
from raylaunch.supervise.diagnosis.rules.compile_rules import read_compilers
from raylaunch.supervise.diagnosis.rules.device_rules import read_devices
from raylaunch.supervise.diagnosis.rules.error_codes import read_numbers
from raylaunch.supervise.diagnosis.rules.exception_rules import read_exceptions
from raylaunch.supervise.diagnosis.rules.flag_rules import read_flags
from raylaunch.supervise.diagnosis.rules.general.device_messages import read_device_messages
from raylaunch.supervise.diagnosis.rules.general.env_values import read_env_values
from raylaunch.supervise.diagnosis.rules.general.hub_errors import read_hub_errors
from raylaunch.supervise.diagnosis.rules.general.key_errors import read_key_errors
from raylaunch.supervise.diagnosis.rules.general.kv_pairing import read_kv_pairing
from raylaunch.supervise.diagnosis.rules.general.nccl_lines import read_nccl_lines
from raylaunch.supervise.diagnosis.rules.general.none_values import read_none_values
from raylaunch.supervise.diagnosis.rules.general.own_defects import read_own_defects
from raylaunch.supervise.diagnosis.rules.general.process_exits import read_process_exits
from raylaunch.supervise.diagnosis.rules.general.ray_exits import read_ray_exits
from raylaunch.supervise.diagnosis.rules.general.ray_messages import read_ray_messages
from raylaunch.supervise.diagnosis.rules.general.start_waits import read_start_waits
from raylaunch.supervise.diagnosis.rules.general.stated_needs import read_stated_needs
from raylaunch.supervise.diagnosis.rules.general.store_clients import read_store_clients
from raylaunch.supervise.diagnosis.rules.general.taken_ports import read_taken_ports
from raylaunch.supervise.diagnosis.rules.hang_rules import read_hangs
from raylaunch.supervise.diagnosis.rules.hccl_rules import read_hccl
from raylaunch.supervise.diagnosis.rules.kv_rules import read_kv_transfer
from raylaunch.supervise.diagnosis.rules.libraries.compiled_calls import read_compiled_calls
from raylaunch.supervise.diagnosis.rules.libraries.library_rules import read_libraries
from raylaunch.supervise.diagnosis.rules.libraries.triton_rules import read_triton
from raylaunch.supervise.diagnosis.rules.memory_rules import read_memory
from raylaunch.supervise.diagnosis.rules.network_rules import read_network
from raylaunch.supervise.diagnosis.rules.npu.npu_rules import NPU_RULES
from raylaunch.supervise.diagnosis.rules.os_rules import read_os_errors
from raylaunch.supervise.diagnosis.rules.ray_rules import read_ray
from raylaunch.supervise.diagnosis.rules.refusal_rules import read_refusals
from raylaunch.supervise.diagnosis.rules.weight_rules import read_weights

RULES: tuple[Callable[[ServerLog], Iterable[Reading]], ...] = (
    *NPU_RULES,
    read_triton,
    read_weights,
    read_env_values,
    read_kv_pairing,
    read_compiled_calls,
    read_exceptions,
    read_key_errors,
    read_none_values,
    read_libraries,
    read_compilers,
    read_flags,
    read_memory,
    read_os_errors,
    read_ray_exits,
    read_ray,
    read_ray_messages,
    read_kv_transfer,
    read_hub_errors,
    read_taken_ports,
    read_store_clients,
    read_network,
    read_hccl,
    read_hangs,
    read_start_waits,
    read_devices,
    read_device_messages,
    read_nccl_lines,
    read_process_exits,
    read_blocks,
    read_numbers,
    read_stated_needs,
    read_own_defects,
    read_refusals,
)
