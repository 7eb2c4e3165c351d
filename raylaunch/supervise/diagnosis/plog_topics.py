"""What CANN's own log lines are about: a subject by its words, else the component that wrote it.

Sources: the fault guides of cann/hixl and cann/hcomm, CANN's list of log modules.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from raylaunch.supervise.diagnosis.signatures import Kind


@dataclass(frozen=True)
class Topic:
    """A subject: `words` are in the lines of one failure."""

    words: str
    cause: str
    remedy: str
    kind: Kind = "transient"
    id: str = "plog-error"
    """A name of its own for what explains other failures."""


_SEGMENT = "`global_segment_size` (mooncake.json)"
# Ordered: the more special subject first.
TOPICS: tuple[Topic, ...] = (
    Topic(
        r"\b[A-Z]{2,12}_[A-Z][A-Z_]{2,40} ?\[[^\]\n]{0,80}\] (?:is )?"
        r"(?:invalid|illegal|not valid)",
        "An environment variable has a value that this CANN does not take.",
        "Correct `env.{variable}` (a recipe need not set it; the line names the values that are "
        "valid), also in the shell that starts Ray.",
        "deterministic",
    ),
    Topic(
        r"ShareableHandle|[Ff]abric_?[Mm]em",
        "Memory of another NPU could not be opened through its handle (fabric memory): the two "
        "NPUs are not in one super node, or driver, CANN and the super node's software do not "
        "support it.",
        "Unset `env.ASCEND_ENABLE_USE_FABRIC_MEM` on all servers, or place them in one super node "
        "with the driver (HDK) and CANN that fabric memory needs.",
        "deterministic",
        "plog-fabric",
    ),
    Topic(
        r"create[_ ][cq][qp]\b|\b[cq][qp][_ ]create|drv_create_[cq]",
        "The NPU has no memory of its own system left for RDMA queues (that is not HBM): host "
        "memory registered with its network card takes page tables there, or too many links are "
        "open.",
        f"Register less host memory: a smaller {_SEGMENT}. Back it with huge pages "
        "(`vm.nr_hugepages`, `env.MC_STORE_USE_HUGEPAGE: 1`), and use driver 25.5 or newer, which "
        "counts huge pages once. `args.gpu-memory-utilization` does not help here.",
        id="plog-queues",
    ),
    Topic(
        r"Can'?t find remote ?[Bb]uffer|remote ?buffer[^\n]{0,40}not (?:found|exist)",
        "The memory to be read or written on the peer is not registered there, or was registered "
        "after the link was made.",
        "Use one release of Mooncake (HIXL), vllm-ascend and CANN on both sides. Host memory of "
        "the peer needs `env.HCCL_INTRA_ROCE_ENABLE: 1` on both sides.",
    ),
    Topic(
        r"CheckMemCpyAttr|real memory type",
        "A transfer names another kind of memory (host or device) than the address has: the "
        "buffer is not registered, or is host memory that is not pinned.",
        "Use one release of Mooncake (HIXL), LMCache-Ascend and vllm-ascend; host buffers must be "
        "pinned (`pin_memory`) and registered before the transfer.",
        "deterministic",
    ),
    Topic(
        r"MemReg|[Rr]eg(?:ister)?(?:Global|Typical|Bound)?[_ ]?(?:global[_ ]|typical[_ ])?"
        r"(?:[Mm]r|[Mm]em)\b|RegisterBoundMem|_mr_reg|localbuffer init|ShmemCreateHandle|"
        r"Ipc node attr|ibv_reg_mr|_mr_reg|reg (?:ai )?mr fail",
        "Memory that is to be transferred could not be registered with the NPU or its network card"
        "{alignment}.",
        "Memory for HCCS links must begin at a multiple of 2 MiB (huge pages), be as large as it "
        "was allocated, and be of a kind that the card can register: use the releases of "
        "vllm-ascend and Mooncake (HIXL) that belong together, and huge pages for a pool of host "
        "memory (`env.MC_STORE_USE_HUGEPAGE: 1`). A large pool also needs page tables on the NPU: "
        f"lower {_SEGMENT}, use driver 25.5 or newer and a newer Mooncake.",
        "deterministic",
        "plog-memory",
    ),
    Topic(
        r"'?device[_ ]ip'? is not set|hccn\.conf",
        "CANN finds no address of the NPU's own network port (device_ip).",
        "Mount /etc/hccn.conf into the container; `hccn_tool -i N -ip -g` must print an address "
        "for each NPU. A newer CANN asks hccn_tool itself.",
        "deterministic",
    ),
    Topic(
        r"device ip family\[\d{1,3}\] is not same",
        "The network ports of the NPUs have addresses of different kinds: IPv4 (family 2) on one "
        "rank, IPv6 (family 10) on another.",
        "Give all NPUs addresses of one kind (`hccn_tool -i N -ip -g`, `hccn_tool -i N -ip -inet6 "
        "-g`), or say which to use on all nodes: `env.HCCL_SOCKET_FAMILY: AF_INET` (AF_INET6).",
        "deterministic",
    ),
    Topic(
        r"path \S{1,200} is not a valid real path",
        "A file that HCCL was told to read, the rank table, does not exist here or may not be "
        "read.",
        "Correct `env.RANK_TABLE_FILE` (the path on this node or in this container, readable for "
        "its user), or start without one (remove it): HCCL then finds the ranks itself.",
        "deterministic",
    ),
    Topic(
        r"IP is used repeatedly|device_ip\]?:?[^\n]{0,40} (?:is )?already exist",
        "Two processes of one group use the same NPU (its address is there twice): for example a "
        "store and a client of Mooncake on one card.",
        "Give each process another port, `env.ASCEND_GLOBAL_RESOURCE_CONFIG: "
        '{"comm_resource_config.listen_port": 26666}` and so on, or another NPU.',
        "deterministic",
    ),
    Topic(
        r"same superDeviceId|superDeviceId\[[^\]\n]{1,40}\] in superPod[^\n]{0,60}already exist",
        "Two NPUs of one super node have the same number in it (superDeviceId): several super "
        "nodes were joined to one, or one of them is configured wrongly.",
        "Compare SDID and super pod of both NPUs (`npu-smi info -t spod-info -i ID -c CHIP`). Give "
        "each physical super node its own `env.HCCL_LOGIC_SUPERPOD_ID` (or unset it), or correct "
        "the configuration of the super node.",
        "deterministic",
    ),
    Topic(
        r"(?i)json\.exception|json[ _]?parse|parse[^\n]{0,20}json|invalid json",
        "A JSON file or text that CANN was given cannot be read.",
        "Correct it at the place that the line names: the rank table (RANK_TABLE_FILE, "
        "ranktable.json), or the JSON in ASCEND_GLOBAL_RESOURCE_CONFIG. `python3 -m json.tool "
        "FILE` finds the error; HCCL starts without a rank table, too (remove "
        "`env.RANK_TABLE_FILE`).",
        "deterministic",
    ),
    Topic(
        r"super_device_id|sdid:0xffffffff|invalid host device id 65535",
        "The rank table does not name the place of the NPU in its super node (super_device_id).",
        "Write a rank table of version 1.2 with `super_device_id` (`npu-smi info -t spod-info -i "
        "ID -c CHIP`, line SDID), or start without one (remove `env.RANK_TABLE_FILE`).",
        "deterministic",
    ),
    Topic(
        r'config "tls"|enabled tls|TlsStatus[^\n]{0,20}inconsist|tls[^\n]{0,30}not consis',
        "TLS is on for the network port of some NPUs and off for others.",
        "Make them equal on all nodes (`hccn_tool -i N -tls -g`, `-tls -s enable 0`).",
        "deterministic",
    ),
    Topic(
        r"error cqe|err_cqe|retry (?:counter )?exceed|CQE status\[",
        "An RDMA transfer between two NPUs ended with an error (error CQE): the network card sent "
        "a packet again and again without an answer. The link between the two NPUs loses packets "
        "or is down, or the process of the peer has ended.",
        "Find the NPU whose process ended first (its log, `dmesg -T` there). If all run, check "
        "the link of both NPUs: `hccn_tool -i N -link -g`, `-stat -g` and `-ping -g address "
        "PEER`, and the switch ports behind them.",
        id="plog-cqe",
    ),
    Topic(
        r"CMD information \w{1,20} check fail|arguments for collective communication are incons",
        "Two ranks do not do the same: their collective operations differ in name, size or type "
        "(HCCL compares them when it sets up a link).",
        "Start all servers of the group with the same releases, model, recipe and environment "
        "(`raylaunch plan NAME` shows them for each node), and read the log of the other rank: a "
        "rank that has failed, or that got another batch, calls another operation.",
        "deterministic",
        "plog-ranks-differ",
    ),
    Topic(
        r"\b(?:recv|send) fail|ExchangeNotify\w*|rtRet\[228\d{3}\]",
        "The peer closed the connection while the link between the two NPUs was set up: the cause "
        "is in its log.",
        "Read the plog of the peer at that time; often its NPU memory is full (each link takes "
        "some MB): lower `args.gpu-memory-utilization` there.",
    ),
    Topic(
        r"[Ll]inks? establish completed failed|socket establish timeout|[Ll]ink ?[Ee]stablish\w* "
        r"(?:is )?fail",
        "The link to another NPU was not set up in time: its process has ended or comes late, its "
        "network port is down or in another network, or TLS differs.",
        "Read the log of the rank at the other end (LINK_ERROR_INFO below names it); on both nodes "
        "compare `hccn_tool -i N -link -g`, `-ip -g`, `-tls -g` and try `-ping -g address PEER`. "
        "If ranks load at different speed, set `env.HCCL_CONNECT_TIMEOUT: 7200`.",
    ),
    Topic(
        r"stream sync(?:hronize)? timeout|StreamSyncError",
        "An operation on the NPU, often a transfer to a peer, did not end in its time-out.",
        "Check the RoCE links for lost packets (`hccn_tool -i N -stat -g`, priority flow control "
        "of the switch); of KV transfers raise `env.ASCEND_TRANSFER_TIMEOUT`. If no transfer "
        "runs, treat it as a hanging kernel.",
    ),
    Topic(
        r"can ?not broadcast|[Ii]nfer ?[Ss]hape|[Tt]iling (?:func )?fail|OpName:\[aclnn|"
        r"\baclnn[A-Z]\w+",
        "An NPU operator refused its inputs{operator}: sizes or types that do not fit together.",
        "Start once with `args.enforce-eager: true`, once without `features.speculative` and "
        "`args.async-scheduling`: the one that helps names the feature; then use a newer release "
        "of vllm-ascend with the CANN of its image. ATB and aclnn log the failed check in "
        "~/ascend/log.",
    ),
)
_COMPONENTS: dict[str, tuple[str, ...]] = {
    "Its driver reports that: check `npu-smi info`, `dmesg -T` and that the driver "
    "(/usr/local/Ascend/driver/version.info) is one that this CANN names.": (
        *("DRV", "DRVMEM", "HDC", "DEVMM", "LIBDRV"),
    ),
    "The NPU's own network service reports that: check `hccn_tool -i N -link -g`, `-ip -g`, "
    "`-tls -g` on both ends.": ("HCCP", "ROCE", "RA"),
    "The start of the process on the NPU failed: look for other processes (`npu-smi info`), and "
    "compare CANN and driver with the image's.": ("TSD", "TDT", "TSDAEMON"),
    "The graph engine or operator compiler reports that: the kernels package (-kernels or -ops) "
    "and CANN must be of one release; set_env.sh must be sourced.": (
        *("GE", "FE", "TE", "TEFUSION", "TBE", "FUSION", "PARSER"),
    ),
    "A kernel on the NPU's own CPUs reports that: reinstall the kernels package of this CANN for "
    "this NPU.": ("AICPU", "CCECPU", "KERNEL"),
}
_ERRNO = re.compile(r"(?:\bret|errno|error)[ :=]{0,2}[\[(]?-?(\d{1,3})\b")
_ADDRESS = re.compile(r"\bva=(0x[0-9a-f]{4,16}); page_size=([1-9]\d{3,7})")
_OPERATOR = re.compile(r"OpName:\[(\w{3,80}?)(?:_\d{3,})?\]|\b(aclnn[A-Z]\w{2,60})")
_VARIABLE = re.compile(r"\b([A-Z]{2,12}_[A-Z][A-Z_]{2,40}) ?\[")
_SYSTEM = re.compile(r"^(?:DRV|HCCP|ROCE|RA|HDC)")


def find_topic(texts: Sequence[str]) -> tuple[int, Topic] | None:
    """Return the first subject that one of these lines is about, and which line."""
    for topic in TOPICS:
        for index, text in enumerate(texts):
            if re.search(topic.words, text):
                return index, topic
    return None


def fill_remedy(topic: Topic, said: str) -> str:
    """Return the remedy with the variable that the line names."""
    found = _VARIABLE.search(said)
    return topic.remedy.replace("{variable}", found[1] if found else "NAME")


def fill_cause(topic: Topic, texts: Sequence[str]) -> str:
    """Return the cause with the values that the lines name."""
    text = "\n".join(texts)
    address = _ADDRESS.search(text)
    odd = address is not None and int(address[1], 16) % int(address[2]) != 0
    names = [match[1] or match[2] for match in _OPERATOR.finditer(text)]
    name = next((each for each in names if each.startswith("aclnn")), "".join(names[:1]))
    return topic.cause.format(
        alignment=f" ({address[1]} is no multiple of {address[2]})" if odd and address else "",
        operator=f" ({name})" if name else "",
    )


def advise_component(component: str) -> str:
    """Return where to look for a failure that a component of CANN reports; "" if not known."""
    return next((how for how, names in _COMPONENTS.items() if component in names), "")


def name_errno(component: str, said: str) -> str:
    """Return the words of an error number of the operating system, of components that use them."""
    found = _ERRNO.search(said) if _SYSTEM.match(component) else None
    if found is None or int(found[1]) not in (11, 12, 13, 16, 19, 22, 98, 104, 110, 111, 113):
        return ""
    return f" ({os.strerror(int(found[1]))})"
