"""A rendezvous that waits for ranks: how many came."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason

_CLIENTS = re.compile(
    r"Timed out after (\d{1,7}) seconds waiting for clients\. (\d{1,5})/(\d{1,5}) clients joined"
)
_OLD_ENGINE = re.compile(r"V0 LLM engine|MQLLMEngine|vllm/engine/multiprocessing")


def read_store_clients(log: ServerLog) -> Iterator[Reading]:
    """Yield a store whose clients did not all come, with their number."""
    for line, match in log.errors.find(_CLIENTS):
        waited, came, expected = match.groups()
        missing = int(expected) - int(came)
        old = _OLD_ENGINE.search("\n".join(log.cleaned[max(0, line - 12) : line + 12]))
        alone = (
            " This is vLLM's V0 engine, whose server starts only one of the data-parallel ranks."
            if old and came == "1"
            else ""
        )
        v1 = "Use the V1 engine (unset `env.VLLM_USE_V1`). " if alone else ""
        yield Reading(
            reason(
                "torch-store-timeout",
                f"The rendezvous of a process group waited {waited} s, and {came} of {expected} "
                f"ranks came: {missing} did not start, failed earlier, or cannot reach this "
                f"node's port.{alone}",
                f"{v1}Read the logs of the other ranks from their start (the first error there is "
                "the cause), see that every server of the group was started with the same "
                "parallel sizes, set `network.interface` on all nodes, and open the ephemeral "
                "ports between them (`sysctl net.ipv4.ip_local_port_range`).",
                "libtorch TCPStore.cpp; vllm#24036, vllm-ascend#167",
                "transient",
            ),
            line,
            rank=Rank.HINT,
            certain=False,
            symptom=True,
        )
