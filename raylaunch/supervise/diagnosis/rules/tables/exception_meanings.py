"""Kinds of exceptions by their words or their type: what each means, and what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass

from raylaunch.supervise.diagnosis.signatures import Kind
from raylaunch.supervise.diagnosis.tracebacks import Raised

_PAIR = (
    "Install the releases of vLLM and vllm-ascend that belong together (`pip list | grep -i vllm`; "
    "vllm-ascend's table of versions), or use the release's container image"
)


@dataclass(frozen=True)
class Meaning:
    """One kind of exception: `words` in its message, or one of `types`."""

    name: str
    cause: str
    remedy: str
    words: str = ""
    types: tuple[str, ...] = ()
    kind: Kind = "deterministic"

    def fits(self, raised: Raised) -> bool:
        """Return whether an exception is of this kind."""
        if raised.type.startswith(self.types or ("-",)):
            return True
        return bool(self.words) and re.search(self.words, raised.message) is not None


# Ordered: the more special kind first.
MEANINGS: tuple[Meaning, ...] = (
    Meaning(
        name="device-too-old",
        words=r"too old to be supported|(?:[Mm]in(?:imum)?|[Cc]urrent|CUDA|compute) [Cc]apability|"
        r"only supported on (?:\w{1,20} ){0,3}(?:GPU|NPU|device)s?\b|"
        r"not supported (?:on|by|for) (?:this|your|the current) "
        r"(?:GPU|device|platform|hardware|arch)",
        cause="The device does not have what this code needs",
        remedy="Choose what this device supports: another `args.dtype`, `args.kv-cache-dtype`, "
        "`args.attention-backend` or quantisation of the weights (`model.path`), or "
        "`args.enforce-eager: true` for compiled kernels; else a newer device.",
    ),
    Meaning(
        name="property-read-only",
        words=r"property '\w{1,80}' of '\w{1,80}Config' object has no setter",
        cause="A configuration class of transformers (or of the model's own code) does not let "
        "one of its properties be set, and other code sets it: releases that do not belong "
        "together, or a defect of this transformers",
        remedy="Install another transformers within the range that this vLLM names (`pip show "
        "vllm`), its next patch release first, or the one that the model card names.",
    ),
    Meaning(
        name="memory-short",
        types=("MemoryError",),
        words=r"[Oo]ut of memory|\bOOM\b|[Nn]ot enough (?:\w{1,20} )?memory|[Ii]nsufficient memory|"
        r"memory (?:is )?(?:not enough|insufficient)|more than total mem|"
        r"[Ff]ailed to alloc\w{0,10} (?:\w{1,20} )?memory",
        cause="Memory is short",
        remedy="Lower `args.max-num-batched-tokens`, `args.max-model-len` or "
        "`args.gpu-memory-utilization`, raise `parallel.tensor`, or see who holds it (`npu-smi "
        "info`, `free -g`).",
    ),
    Meaning(
        name="bytes-unreadable",
        types=("UnicodeDecodeError",),
        cause="Bytes that are no text were read by {package}: a damaged or binary file in place of "
        "a text one, or a peer of another release that sends another form",
        remedy="Download the model's *.json and tokenizer files again (`file *` under "
        "`model.path`); between servers install the same releases of vLLM and of the connector.",
    ),
    Meaning(
        name="sizes-zero",
        types=("ZeroDivisionError",),
        cause="A number of the model becomes zero when it is split over the ranks",
        remedy="Choose a smaller `parallel.tensor` (not more ranks than heads, KV heads or "
        "experts), or another `parallel.expert` and `parallel.data`.",
    ),
    Meaning(
        name="peer-ended",
        types=("EOFError", "IncompleteReadError"),
        cause="A pipe, connection or file ended before {package} had read all of it: the process "
        "at the other end died, or the file is cut off",
        remedy="Look for the first error of the other process (on all nodes), and `dmesg -T | "
        "grep -iE 'oom|killed process'`; a cut-off file of a cache or of the model is removed and "
        "made or downloaded again.",
        kind="transient",
    ),
    Meaning(
        name="not-picklable",
        words=r"Can't get (?:local )?attribute|[Cc]an(?:'t|not) pickle|not (?:JSON )?serializable|"
        r"No module named '__mp_main__'",
        cause="An object cannot be sent between the processes of the server: they have different "
        "releases of a package, or it is a function or class that only one of them knows",
        remedy="Install the same releases on all nodes and in all processes; a plug-in or custom "
        "class must be importable by its module name (`args.worker-extension-cls`), and functions "
        "need `env.VLLM_ALLOW_INSECURE_SERIALIZATION: 1`.",
    ),
    Meaning(
        name="device-query",
        types=("NVMLError", "DCMIError"),
        cause="The driver's management library refused a query of {package}",
        remedy="Compare the devices that the process sees (`npu-smi info`, `nvidia-smi`) with "
        "ASCEND_RT_VISIBLE_DEVICES or CUDA_VISIBLE_DEVICES: a number that is not there, a device "
        "that is not mounted, or a driver library of another release.",
    ),
    Meaning(
        name="sizes-not-divisible",
        words=r"[Dd]ivisible|[Mm]ultiple of|evenly",
        cause="A size of the model cannot be split as the parallel sizes of the recipe ask",
        remedy="Choose another `parallel.tensor` (with experts also `parallel.expert` and "
        "`parallel.data`) that divides the number in the message.",
    ),
    Meaning(
        name="index-outside",
        words=r"(?:list|tuple|string|deque|array) (?:assignment )?index out of range",
        cause="The code of {package} reads beyond the end of a list: it counts blocks, tokens, "
        "layers or ranks otherwise than they are",
        remedy="Use a newer release or image of {package}. Until then start once with "
        "`args.enforce-eager: true`, once without `features.speculative`, once with "
        "`args.enable-prefix-caching: false`: the one that helps names the feature to leave off.",
    ),
    Meaning(
        name="tensor-shapes",
        words=r"size of tensor|[Ss]hape mismatch|shape '?\[|[Ss]hapes? (?:cannot|of|do not|must)|"
        r"cannot be broadcast|could not (?:be )?broadcast|cannot be multiplied|view size is not|"
        r"invalid for input of size|"
        r"must have shape|non-singleton|k-axis|number of elements|[Ss]izes of tensors|"
        r"expanded size|expects? (?:each )?(?:a )?\d?-?D? ?tensors?|[Dd]imension|"
        r"split_with_sizes|same size|index out of range|out of bounds",
        cause="The sizes of tensors do not fit together",
        remedy="Use a newer release of {package}, or the one that the model card names: the code "
        "of this one does not fit this model with these options. Until then start once with "
        "`args.enforce-eager: true`, once without `features.speculative`, once with another "
        "`parallel.tensor`, with experts once with the other value of `parallel.expert`: the one "
        "that helps names the feature to leave off.",
    ),
    Meaning(
        name="tensor-elsewhere",
        words=r"can't convert (?:npu|cuda)\S{0,3} device type tensor to numpy|"
        r"all tensors to be on the same device|on (?:different|the same) devices?\b",
        cause="A tensor is on the NPU where {package} expects it in the host's memory, or the "
        "other way round: code of one release is called by that of another, or this release does "
        "not support the model with this feature",
        remedy=_PAIR + "; if they do, use a newer release or image of both.",
    ),
    Meaning(
        name="not-set-up",
        words=r"(?:is|was|been|are) (?:not |never )(?:yet )?(?:been )?(?:initiali[sz]ed|set\b|"
        r"registered|set up)|not been initiali|[Pp]lease call|called outside|must be called|"
        r"before calling|not initiali[sz]ed",
        cause="A part of {package} was used before it was set up: releases that do not belong "
        "together, or a combination of features that this release does not have",
        remedy=_PAIR + "; if they do, start without the feature that the traceback goes through.",
    ),
    Meaning(
        name="attribute-missing",
        words=r"has no attribute|is not defined|referenced before assignment|"
        r"not associated with a value|is not (?:subscriptable|callable|iterable)|"
        r"unsupported operand type",
        cause="The code uses a part that this object does not have: this release does not support "
        "the model with this feature, or packages are of different releases",
        remedy="Use a newer release of {package} (or the one that the model card names): no "
        "setting is refused. " + _PAIR + ".",
    ),
    Meaning(
        name="call-mismatch",
        words=r"unexpected keyword argument|required (?:positional|keyword-only) argument|"
        r"positional arguments? but|incompatible function arguments|"
        r"(?:expected|any|function) schema|schema mismatch|"
        r"multiple values for (?:keyword )?argument|values to unpack",
        cause="One package calls another with arguments that it does not take: their releases do "
        "not belong together",
        remedy=_PAIR + ".",
    ),
    Meaning(
        name="program-failed",
        types=("CalledProcessError", "SubprocessError"),
        cause="A program that the server called failed",
        remedy="Its own output stands above this line, or run the command of the message by hand "
        "in the server's environment on that node.",
    ),
    Meaning(
        name="timed-out",
        types=("TimeoutError", "Timeout", "ReadTimeout", "ConnectTimeout", "TimeoutExpired"),
        # Not a call with the word in its name, as in AclrtSynchronizeStreamWithTimeout.
        words=r"[Tt]imed[ -]?out|(?<!\w)[Tt]ime-?out\b",
        cause="The server waited for another process or host in vain",
        remedy="Look which process's log stops first, on all nodes; `py-spy dump --pid PID` shows "
        "where it hangs, `~/ascend/log/debug/plog` what its NPU waits for. If it only is slow, "
        "raise the time-out that the message names.",
        kind="transient",
    ),
    Meaning(
        name="refused",
        words=r"[Nn]ot (?:yet )?(?:be )?(?:supported|implemented|allowed|available|compatible|"
        r"supporting|permitted|accepted|recogni[sz]ed)|"
        r"\breserved\b|(?:does|do|can)(?: ?n[o']t|not) (?:yet )?(?:support|work|be used|use)|"
        r"[Uu]nsupported|[Ii]ncompatible|[Oo]nly (?:supports?|works?|"
        r"[^\n]{1,80}? (?:is|are) (?:\w{1,12} )?supported)|is required|[Rr]equires?\b|"
        r"must (?:be|not|set|have|match)|should (?:be|not)|[Ii]nvalid|[Mm]ismatch|[Uu]nknown|"
        r"[Uu]nrecogni[sz]ed|"
        r"[Ee]xpected|[Ff]ailed to find|not found|[Pp]lease (?:set|use|try|make|check|specify)",
        types=("NotImplementedError",),
        cause="{package} refused",
        remedy="Use a release of {package} that supports it, or leave the feature off.",
    ),
    Meaning(
        name="lookup-failed",
        types=("KeyError", "IndexError"),
        cause="The code looks something up and does not find it: a file of the model lacks the "
        "entry, or this release does not know this model's form",
        remedy="Compare config.json and the quantisation files under `model.path` with the model "
        "card, and use the vLLM and vllm-ascend releases that it names.",
    ),
    Meaning(
        name="assertion-failed",
        types=("AssertionError",),
        cause="A check of {package} failed",
        remedy="Switch off the feature that the traceback goes through, or use a release of "
        "{package} that supports it with this model.",
    ),
)
