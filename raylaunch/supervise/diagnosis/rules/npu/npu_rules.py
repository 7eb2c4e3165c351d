"""The rules of this folder, in the order in which their readings are preferred."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Reading
from raylaunch.supervise.diagnosis.rules.npu.argument_rules import read_arguments
from raylaunch.supervise.diagnosis.rules.npu.ascend_objects import read_objects
from raylaunch.supervise.diagnosis.rules.npu.build_rules import read_builds
from raylaunch.supervise.diagnosis.rules.npu.call_codes import read_call_codes
from raylaunch.supervise.diagnosis.rules.npu.chip_rules import read_chips
from raylaunch.supervise.diagnosis.rules.npu.container_rules import read_containers
from raylaunch.supervise.diagnosis.rules.npu.dcmi_codes import read_dcmi
from raylaunch.supervise.diagnosis.rules.npu.exchange_rules import read_exchanges
from raylaunch.supervise.diagnosis.rules.npu.foreign_objects import read_foreign_objects
from raylaunch.supervise.diagnosis.rules.npu.install_rules import read_children, read_installs
from raylaunch.supervise.diagnosis.rules.npu.kv_pool_codes import read_kv_pool
from raylaunch.supervise.diagnosis.rules.npu.lost_codes import read_lost_codes
from raylaunch.supervise.diagnosis.rules.npu.operator_rules import read_operators
from raylaunch.supervise.diagnosis.rules.npu.option_rules import read_options
from raylaunch.supervise.diagnosis.rules.npu.plog_rules import read_plogs
from raylaunch.supervise.diagnosis.rules.npu.plugin_rules import read_plugins

NPU_RULES: tuple[Callable[[ServerLog], Iterable[Reading]], ...] = (
    read_plugins,
    read_chips,
    read_objects,
    read_foreign_objects,
    read_containers,
    read_builds,
    read_installs,
    read_children,
    read_options,
    read_arguments,
    read_exchanges,
    read_dcmi,
    read_operators,
    read_kv_pool,
    read_call_codes,
    read_plogs,
    read_lost_codes,
)
