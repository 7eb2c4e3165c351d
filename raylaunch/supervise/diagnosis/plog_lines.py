"""Error lines of CANN's components, on the console or in plog, without an error block."""

from __future__ import annotations

import re
from collections.abc import Sequence

from raylaunch.supervise.diagnosis.exit_reasons import ExitReason
from raylaunch.supervise.diagnosis.plog_topics import (
    advise_component,
    fill_cause,
    fill_remedy,
    find_topic,
    name_errno,
)
from raylaunch.supervise.diagnosis.readings import reason, shorten

# [ERROR] HCCL(4210,python):2025-08-27-20:10:17:012.780 [file.cc:169][4260][Parse][Info]text
_LINE = re.compile(
    r"^\[ERROR\] ?([A-Z][A-Z_]{1,20})\(\d{1,9},[^)\n]{0,40}\): ?\d{4}-\d\d-\d\d-[\d:.]{8,20} ?"
    r"\[[^\]\n]{1,80}\] ?(?:\d{1,9} |(?:\[[^\]\n]{1,60}\]){0,6})([^\n]{8,600})"
)
# [2024-12-05 09:28:49.347] [dicp] [error] [model.cpp:234] text; ATB has the thread before the file.
_NATIVE = re.compile(
    r"^\[\d{4}-\d\d-\d\d [\d:.,+]{8,20}\] (?:\[([a-z]\w{1,20})\] )?\[(?:error|critical|fatal)\] "
    r"(?:\[\d{1,9}\] )?\[[\w./-]{1,80}:\d{1,6}\] ?([^\n]{8,600})"
)
_ERRNO = re.compile(r"^errNo\[0x[\da-fA-F]{4,20}\] ?")
_NO_CAUSE = re.compile(
    r"^(?:errNo\[|\s{0,8}_{6}|\s{0,8}\||-{6})|[Cc]all trace|report error module_name|"
    r"rtGetDevMsg|GetDevErrMsg|Task run failed|fails to connect to dstRank|No abnormal periods|"
    r"CONNECT TIMEOUT DETECT|\[ROCE CQE ERROR\]"
)
_RANK_TABLE = (
    "Correct the rank table (device numbers, addresses, ranks): make it again on the nodes as they "
    "are, or start without one (remove `env.RANK_TABLE_FILE`)."
)
_PORT = (
    "Free that port, or choose others with `env.HCCL_IF_BASE_PORT` and "
    "`env.HCCL_NPU_SOCKET_PORT_RANGE`."
)
_LINK = (
    "Compare the NPU links of both ends (`hccn_tool -i N -link -g`, `-ip -g`, `-tls -g`, `-ping`), "
    "and read the log of the peer."
)
_NO_DEVICE = (
    "Compare `npu-smi info` on the host and where the server runs: a container needs /dev/davinciN "
    "of its NPUs, /dev/davinci_manager, /dev/devmm_svm, /dev/hisi_hdc and the driver "
    "(/usr/local/Ascend/driver) mounted, and an NPU that no other container has."
)
_DESCRIBED = re.compile(r"ErrCode=(\d{6}), ?desc=\[([^\]\n]{4,200})\]")
_REASON_LINES = 4
_TOPIC_LINES = 12
_CAPTURE = (
    "A copy or wait is called while a graph is captured: set `args.compilation-config: "
    "{cudagraph_mode: PIECEWISE}` or `args.enforce-eager: true`, leave more memory free (lower "
    "`args.gpu-memory-utilization`), or use another release of vllm-ascend."
)
_ATB = (
    "An operator of ATB (package NNAL) refused its input: use NNAL, CANN and torch_npu of one "
    "release and an image for this NPU generation; try without graphs (`args.enforce-eager: "
    "true`)."
)
_BY_WORDS: tuple[tuple[str, str], ...] = (
    (r"capture mode|during capture|\bcaptur", _CAPTURE),
    (r"device (?:num|count)|drvGetDevNum|no (?:valid )?device|load driver so", _NO_DEVICE),
    (r"rank ?table", _RANK_TABLE),
    (r"\bport\b|listen|bind", _PORT),
    (
        (
            r"(?i)\b(?:node ?\[\d|runner|operation)\b|SetAclNN|\w{2,20}Node call|execute fail|"
            r"setup fail|infer ?shape"
        ),
        _ATB,
    ),
    (r"ifname|host ?ip|interface", "Set `network.interface` to the network between the nodes."),
    (r"socket|connect|link|time ?out", _LINK),
    (
        r"(?i)memory (?:is|not|alloc|insuff)|mem_?alloc|malloc|out of mem|total mem|alloc",
        (
            "`npu-smi info` shows who holds memory; lower `args.gpu-memory-utilization` or "
            "`args.max-model-len`, or raise `parallel.tensor`."
        ),
    ),
)


def _described(texts: Sequence[str]) -> str:
    """Return the runtime's own words for its code: they stand some lines below the first report."""
    found = next((each for text in texts if (each := _DESCRIBED.search(text))), None)
    return f"{found[2]} ({found[1]})" if found else ""


def _match(text: str) -> re.Match[str] | None:
    found = _LINE.match(text) or _NATIVE.match(text)
    return None if found is None or _NO_CAUSE.search(found[2]) else found


def _first_matched(texts: Sequence[str]) -> list[tuple[int, re.Match[str]]]:
    """Return the first lines of CANN that may name a subject, also those behind an `errNo[]`."""
    first: list[tuple[int, re.Match[str]]] = []
    for index, text in enumerate(texts):
        found = _LINE.match(text) or _NATIVE.match(text)
        if found is not None and not _NO_CAUSE.search(_ERRNO.sub("", found[2])):
            first.append((index, found))
            if len(first) == _TOPIC_LINES:
                break
    return first


def _explain_topic(matched: Sequence[tuple[int, re.Match[str]]]) -> tuple[int, ExitReason] | None:
    """Return what lines of one failure are about, by the subject that one of them names."""
    said = [_ERRNO.sub("", found[2]) for _, found in matched]
    if not said or (about := find_topic(said)) is None:
        return None
    place, topic = about
    index, found = matched[place]
    component = found[1] or "ATB"
    quoted = f"{component} of CANN reports: {shorten(said[place].rstrip('. '), 200)}"
    return index, reason(
        topic.id,
        f"{fill_cause(topic, said)} {quoted}{name_errno(component, said[place])}.",
        fill_remedy(topic, said[place]),
        "fault guides of cann/hixl and cann/hcomm",
        topic.kind,
    )


def explain_telling(texts: Sequence[str]) -> tuple[int, ExitReason] | None:
    """Return what these lines are about if that explains what others report of it."""
    about = _explain_topic(_first_matched(texts))
    return about if about is not None and about[1].id != "plog-error" else None


def explain_plog(texts: Sequence[str]) -> tuple[int, ExitReason] | None:
    """Return the first of these lines in which a component of CANN says what failed.

    Returns:
        The index of the line, and what it means; None when no line does.
    """
    matched = [(index, each) for index, text in enumerate(texts) if (each := _match(text))]
    if about := _explain_topic(_first_matched(texts)):
        return about
    for index, found in matched:
        component, said = found[1] or "ATB", found[2]
        if why := _described(texts[index : index + _REASON_LINES]):
            said = f"{why}, in {said}"
        remedy = next((how for words, how in _BY_WORDS if re.search(words, said)), "")
        remedy = remedy or advise_component(component)
        said = f"{said.rstrip('. ')}{name_errno(component, said)}"
        rest = "Read the lines that follow it, and the plog of the other ranks at that time."
        short = (
            "Memory is short: " if re.search(r"more than total mem|[Oo]ut of memory", said) else ""
        )
        again = re.search(r"rank ?table|config", said) is not None
        return index, reason(
            "plog-error",
            f"{short}{component} of CANN reports: {said.rstrip('. ')}.",
            f"{remedy} {rest}".strip(),
            "CANN's log lines",
            "deterministic" if again else "transient",
        )
    return None
