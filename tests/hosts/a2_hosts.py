"""Test hosts that answer as Atlas A2 ones did: `npu-smi` and `hccn_tool` print what real ones were
recorded to print.

There is no NPU behind them. The recorded outputs are those of tests/data, with addresses, switch
ports and faults filled in for each host: NPU n of the first host has 10.20.0.1n, of the second
10.20.1.1n. A ping answers by a table: every NPU is reached but those named in `lose`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hosts import HOME, PATH, ROOT, Host

DATA = ROOT / "tests" / "data"
FOLDER = f"{HOME}/a2"
SITE = f"{HOME}/site"
RECORD = f"{HOME}/record"
MODEL = f"{HOME}/model"
NPUS = range(8)
QUESTIONS = ("link", "ip", "net_health", "netdetect", "gateway", "tls", "mtu", "lldp")
HEADER = "\x02" + "\x00" * 7 + "{}"
"""The least that a safetensors file may hold."""

SMI = f"""#!/bin/sh
[ -e {FOLDER}/hang ] && exec sleep 600
case "$*" in
  info) exec cat {FOLDER}/info.txt ;;
  "info -t board -i "*) exec cat {FOLDER}/board.txt ;;
esac
echo "unexpected: $*"
exit 64
"""

HCCN = f"""#!/bin/sh
# hccn_tool -i N -QUESTION -g, and hccn_tool -i N -ping -g address X
npu=$2 question=${{3#-}} address=$6
if [ "$question" != ping ]; then exec cat {FOLDER}/$npu/$question.txt; fi
sample=ping
grep -qxF "$npu $address" {FOLDER}/lost && sample=ping_timeout
grep -qxF "$address" {FOLDER}/known || sample=ping_unreachable
exec sed "s/^device 0 PING .*/device $npu PING $address/" {FOLDER}/$sample.txt
"""


@dataclass(eq=False)
class A2Host:
    """A host with eight recorded NPUs; `number` makes their addresses different from those of other
    hosts."""

    host: Host
    number: int

    def address(self, npu: int) -> str:
        """Address of an NPU's own port."""
        return f"10.20.{self.number}.{10 + npu}"

    def install(self, variables: Mapping[str, str] | None = None) -> None:
        """Make the host what it should be, in the login shells that `ray up` uses: tools, weights,
        and either these variables or those of the stand-in vLLM."""
        self.host.put(f"{HOME}/bin/npu-smi", SMI, 0o755)
        self.host.put(f"{HOME}/bin/hccn_tool", HCCN, 0o755)
        for name in ("ping", "ping_timeout", "ping_unreachable"):
            self.put(f"{name}.txt", recorded(f"hccn/{name}"))
        self.host.path(SITE).mkdir()
        self.host.path(RECORD).mkdir()
        standin = {
            "PYTHONPATH": SITE,
            "RAYLAUNCH_VLLM": f"{ROOT}/tests/standin/bin/vllm",
            "STANDIN_PYTHON": sys.executable,
            "STANDIN_RECORD": RECORD,
        }
        own = {"PATH": f"{HOME}/bin:{PATH}", **(standin if variables is None else variables)}
        self.host.put(
            f"{HOME}/.bashrc", "".join(f"export {name}={value}\n" for name, value in own.items())
        )
        self.heal()

    def heal(self) -> None:
        """Undo every fault."""
        self.put("info.txt", recorded("npu-smi/a2_idle"))
        self.put("board.txt", recorded("npu-smi/board"))
        self.put("lost", "")
        self.put(
            "known", "".join(f"10.20.{host}.{10 + npu}\n" for host in range(2) for npu in NPUS)
        )
        for npu in NPUS:
            for question in QUESTIONS:
                self.answer(npu, question, recorded(f"hccn/{question}"))
            self.answer(npu, "ip", recorded("hccn/ip").replace("11.12.165.80", self.address(npu)))
            self.answer(
                npu,
                "lldp",
                recorded("hccn/lldp").replace("400GE1/1/5:1", f"400GE1/{self.number + 1}/{npu}"),
            )
        self.host.path(f"{FOLDER}/hang").unlink(missing_ok=True)
        self.put_weights()

    def answer(self, npu: int, question: str, text: str) -> None:
        """What `hccn_tool -i NPU -QUESTION -g` prints from now on."""
        self.put(f"{npu}/{question}.txt", text)

    def lose(self, npu: int, address: str) -> None:
        """Let the pings from this NPU to that address be lost."""
        with self.host.path(f"{FOLDER}/lost").open("a") as table:
            table.write(f"{npu} {address}\n")

    def hang(self) -> None:
        """Let npu-smi hang, as a sick NPU makes it."""
        self.put("hang", "")

    def put(self, name: str, text: str) -> None:
        """Write one of the files that the tools print."""
        self.host.put(f"{FOLDER}/{name}", text)

    def put_weights(self) -> None:
        """Two shards and an index: enough for the checks and for the stand-in."""
        config = {"model_type": "minimax_m2", "num_attention_heads": 48, "num_key_value_heads": 8}
        shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
        index = {"metadata": {}, "weight_map": {f"layer.{shard}": shard for shard in shards}}
        self.host.put(f"{MODEL}/config.json", json.dumps(config))
        self.host.put(f"{MODEL}/model.safetensors.index.json", json.dumps(index))
        for shard in shards:
            self.host.put(f"{MODEL}/{shard}", HEADER)

    def records(self) -> list[dict]:
        """What reached the stand-ins that ran here: argv and environment."""
        folder = self.host.path(RECORD)
        return [json.loads(path.read_text()) for path in sorted(folder.glob("server-*.json"))]


def recorded(name: str) -> str:
    """A recorded output of tests/data."""
    return (Path(DATA) / f"{name}.txt").read_text()
