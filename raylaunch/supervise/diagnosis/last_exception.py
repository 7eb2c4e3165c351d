"""The exception that no signature and no rule knows: what its type, its words and its place mean.

The layer below all others. An engineer who has never seen a message still reads from it what kind
of failure it is: sizes that do not fit, a missing attribute, a refused combination, a child program
that failed. Each kind has a remedy and a class. None of them is certain.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from raylaunch.supervise.diagnosis.advice import read_advice
from raylaunch.supervise.diagnosis.exit_reasons import ExitReason, describe_exit
from raylaunch.supervise.diagnosis.readings import reason, shorten
from raylaunch.supervise.diagnosis.rules.exception_rules import name_features
from raylaunch.supervise.diagnosis.rules.refusal_rules import name_options
from raylaunch.supervise.diagnosis.rules.tables.known_timeouts import name_timeout
from raylaunch.supervise.diagnosis.rules.tables.packages import find_package
from raylaunch.supervise.diagnosis.rules.tables.place_options import name_place_options
from raylaunch.supervise.diagnosis.signatures import Kind
from raylaunch.supervise.diagnosis.tracebacks import Frame, Raised

_PAIR = (
    "Install the releases of vLLM and vllm-ascend that belong together (`pip list | grep -i vllm`; "
    "vllm-ascend's table of versions), or use the release's container image"
)


@dataclass(frozen=True)
class _Meaning:
    """One kind of exception: `words` in its message, or one of `types`."""

    name: str
    cause: str
    remedy: str
    words: str = ""
    types: tuple[str, ...] = ()
    kind: Kind = "deterministic"

    def fits(self, raised: Raised) -> bool:
        if raised.type.startswith(self.types or ("-",)):
            return True
        return bool(self.words) and re.search(self.words, raised.message) is not None


# Ordered: the more special kind first.
MEANINGS: tuple[_Meaning, ...] = (
    _Meaning(
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
    _Meaning(
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
    _Meaning(
        name="bytes-unreadable",
        types=("UnicodeDecodeError",),
        cause="Bytes that are no text were read by {package}: a damaged or binary file in place of "
        "a text one, or a peer of another release that sends another form",
        remedy="Download the model's *.json and tokenizer files again (`file *` under "
        "`model.path`); between servers install the same releases of vLLM and of the connector.",
    ),
    _Meaning(
        name="sizes-zero",
        types=("ZeroDivisionError",),
        cause="A number of the model becomes zero when it is split over the ranks",
        remedy="Choose a smaller `parallel.tensor` (not more ranks than heads, KV heads or "
        "experts), or another `parallel.expert` and `parallel.data`.",
    ),
    _Meaning(
        name="peer-ended",
        types=("EOFError", "IncompleteReadError"),
        cause="A pipe, connection or file ended before {package} had read all of it: the process "
        "at the other end died, or the file is cut off",
        remedy="Look for the first error of the other process (on all nodes), and `dmesg -T | "
        "grep -iE 'oom|killed process'`; a cut-off file of a cache or of the model is removed and "
        "made or downloaded again.",
        kind="transient",
    ),
    _Meaning(
        name="not-picklable",
        words=r"Can't get (?:local )?attribute|[Cc]an(?:'t|not) pickle|not (?:JSON )?serializable|"
        r"No module named '__mp_main__'",
        cause="An object cannot be sent between the processes of the server: they have different "
        "releases of a package, or it is a function or class that only one of them knows",
        remedy="Install the same releases on all nodes and in all processes; a plug-in or custom "
        "class must be importable by its module name (`args.worker-extension-cls`), and functions "
        "need `env.VLLM_ALLOW_INSECURE_SERIALIZATION: 1`.",
    ),
    _Meaning(
        name="device-query",
        types=("NVMLError", "DCMIError"),
        cause="The driver's management library refused a query of {package}",
        remedy="Compare the devices that the process sees (`npu-smi info`, `nvidia-smi`) with "
        "ASCEND_RT_VISIBLE_DEVICES or CUDA_VISIBLE_DEVICES: a number that is not there, a device "
        "that is not mounted, or a driver library of another release.",
    ),
    _Meaning(
        name="sizes-not-divisible",
        words=r"[Dd]ivisible|[Mm]ultiple of|evenly",
        cause="A size of the model cannot be split as the parallel sizes of the recipe ask",
        remedy="Choose another `parallel.tensor` (with experts also `parallel.expert` and "
        "`parallel.data`) that divides the number in the message.",
    ),
    _Meaning(
        name="tensor-shapes",
        words=r"size of tensor|[Ss]hape mismatch|shape '?\[|[Ss]hapes? (?:cannot|of|do not|must)|"
        r"cannot be broadcast|could not (?:be )?broadcast|cannot be multiplied|view size is not|"
        r"invalid for input of size|"
        r"must have shape|non-singleton|k-axis|number of elements|[Ss]izes of tensors|"
        r"expanded size|expects? (?:each )?(?:a )?\d?-?D? ?tensors?|[Dd]imension|"
        r"split_with_sizes|same size|index out of range|out of bounds",
        cause="The sizes of tensors do not fit together",
        remedy="Start once with `args.enforce-eager: true`, once without `features.speculative`, "
        "once with another `parallel.tensor`: the one that helps names the feature. Then use a "
        "release of {package} that supports it with this model, or leave it off.",
    ),
    _Meaning(
        name="not-set-up",
        words=r"(?:is|was|been|are) (?:not |never )(?:yet )?(?:been )?(?:initiali[sz]ed|set\b|"
        r"registered|set up)|not been initiali|[Pp]lease call|called outside|must be called|"
        r"before calling|not initiali[sz]ed",
        cause="A part of {package} was used before it was set up: releases that do not belong "
        "together, or a combination of features that this release does not have",
        remedy=_PAIR + "; if they do, start without the feature that the traceback goes through.",
    ),
    _Meaning(
        name="attribute-missing",
        words=r"has no attribute|is not defined|referenced before assignment|"
        r"not associated with a value|is not (?:subscriptable|callable|iterable)|"
        r"unsupported operand type",
        cause="The code uses a part that this object does not have: this release does not support "
        "the model with this feature, or packages are of different releases",
        remedy=_PAIR + "; a newer release may support the combination.",
    ),
    _Meaning(
        name="call-mismatch",
        words=r"unexpected keyword argument|required (?:positional|keyword-only) argument|"
        r"positional arguments? but|incompatible function arguments|"
        r"(?:expected|any|function) schema|schema mismatch|"
        r"multiple values for (?:keyword )?argument|values to unpack",
        cause="One package calls another with arguments that it does not take: their releases do "
        "not belong together",
        remedy=_PAIR + ".",
    ),
    _Meaning(
        name="program-failed",
        types=("CalledProcessError", "SubprocessError"),
        cause="A program that the server called failed",
        remedy="Its own output stands above this line, or run the command of the message by hand "
        "in the server's environment on that node.",
    ),
    _Meaning(
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
    _Meaning(
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
    _Meaning(
        name="lookup-failed",
        types=("KeyError", "IndexError"),
        cause="The code looks something up and does not find it: a file of the model lacks the "
        "entry, or this release does not know this model's form",
        remedy="Compare config.json and the quantisation files under `model.path` with the model "
        "card, and use the vLLM and vllm-ascend releases that it names.",
    ),
    _Meaning(
        name="assertion-failed",
        types=("AssertionError",),
        cause="A check of {package} failed",
        remedy="Switch off the feature that the traceback goes through, or use a release of "
        "{package} that supports it with this model.",
    ),
)
_OWN = ("vllm", "vllm_ascend", "torch", "torch_npu", "transformers", "ray")
_STANDARD_LIBRARY = re.compile(r"/lib(?:64)?/python3(?:\.\d{1,2})?/(?!site-packages|dist-packages)")


def explain_exception(raised: Raised, line: str, *, serving: bool) -> ExitReason:
    """Return what an exception means that nothing else knows; "unknown" if its words do not tell.

    Args:
        raised: The exception with its frames.
        line: The line of the log, for an exception whose words say nothing.
        serving: The server had answered before, so a start need not meet it again.
    """
    frame = _own_frame(raised)
    meaning = next((each for each in MEANINGS if each.fits(raised)), None)
    meaning = meaning or _by_place(frame) or _by_topic(raised, frame)
    quoted = shorten(f"{raised.type}: {raised.message or raised.code}".rstrip(": "))
    if meaning is None:
        return describe_exit("unknown", line)
    package = _package(raised, frame)
    place = f" (in {frame.module_path})" if frame else ""
    names = " and ".join(name for name, remedy in _features(raised, frame) if remedy)
    through = f" It goes through {names}." if names else ""
    cause = meaning.cause.format(package=package)
    during = ", while it was answering requests" if serving else ""
    way = " ".join(f"{each.module_path} {each.function}" for each in raised.frames[:4])
    waits = name_timeout(f"{raised.message} {way}") if meaning.name == "timed-out" else ""
    known = find_package(frame.package) if frame else None
    of_package = f" {known.remedy}" if known and meaning.name != "package-failed" else ""
    return reason(
        meaning.name,
        f"{cause}{during}: {quoted}{place}.{through}",
        f"{_advised(raised.message)}{_options(raised, frame)}"
        f"{waits}{meaning.remedy.format(package=package)}{of_package}",
        "exception by its words",
        "transient" if serving else meaning.kind,
    )


def explain_message(text: str) -> ExitReason | None:
    """Return what an error line means that is no exception; None if its words do not tell."""
    meaning = next((each for each in MEANINGS if each.words and re.search(each.words, text)), None)
    advised = _advised(text)
    if meaning is None and not advised:
        return None
    cause = meaning.cause.format(package="The server") if meaning else "The server reports an error"
    named = name_options(text)
    correct = f"Correct {' or '.join(named)}. " if named else ""
    remedy = meaning.remedy.format(package="the server's packages") if meaning else ""
    return reason(
        meaning.name if meaning else "error-with-advice",
        f"{cause}: {shorten(text)}",
        f"{advised}{correct}{remedy}".strip(),
        "error line by its words",
        meaning.kind if meaning else "transient",
    )


def _advised(message: str) -> str:
    """Return a sentence with what the message itself advises; "" when it advises nothing."""
    advice = read_advice(message)
    return f"The message advises: {advice}. " if advice else ""


def _own_frame(raised: Raised) -> Frame | None:
    """Return the innermost frame of a package: not of Python's own library or torch's calls."""
    packages = [
        frame
        for frame in raised.frames
        if frame.path.endswith(".py") and not _STANDARD_LIBRARY.search(frame.path)
    ]
    beyond_torch = (frame for frame in packages if frame.package != "torch")
    return next(beyond_torch, next(iter(packages), None))


def _by_place(frame: Frame | None) -> _Meaning | None:
    """Return the meaning of an exception whose words say nothing: where it was raised."""
    if frame is None or not frame.package:
        return None
    if frame.package in _OWN:
        remedy = "Use another release of {package}, or switch off the feature of that file."
        return _Meaning(name="code-failed", cause="{package} failed", remedy=remedy)
    if known := find_package(frame.package):
        return _Meaning(
            name="package-failed",
            cause=f"The package {{package}} ({known.role}) failed",
            remedy=known.remedy.replace("{", "{{").replace("}", "}}"),
        )
    return _Meaning(
        name="package-failed",
        cause="The package {package} failed",
        remedy="Correct its configuration, or install the release of {package} that belongs to "
        "this vLLM.",
    )


def _by_topic(raised: Raised, frame: Frame | None) -> _Meaning | None:
    """Return the meaning of an exception that only names a feature or an option."""
    if not (_features(raised, frame) or name_options(raised.message)):
        return None
    return _Meaning(
        name="feature-failed",
        cause="A part of {package} failed",
        remedy="If it comes again, start without that feature or with another value of that "
        "option, or use another release of {package}.",
        kind="transient",
    )


def _package(raised: Raised, frame: Frame | None) -> str:
    if frame is not None and frame.package:
        return frame.package.replace("_", "-")
    return "vllm-ascend" if re.search(r"\bAscend[A-Z]|vllm_ascend", raised.message) else "vLLM"


def _features(raised: Raised, frame: Frame | None) -> list[tuple[str, str]]:
    """Return the features that an exception goes through, each with how to switch it off."""
    # torch's folders are called scheduler and codegen, too, and are no features of vllm-ascend.
    own = [each for each in raised.frames[:4] if each.package not in ("torch", "ray", "triton")]
    places = " ".join(each.module_path for each in own) or raised.before
    function = frame.function if frame else ""
    return name_features(f"{places} {function} {raised.message}", raised.process)


def _options(raised: Raised, frame: Frame | None) -> str:
    """Return a sentence on the options that the message names and the features it goes through."""
    named = name_options(f"{raised.message} {raised.code}") or name_place_options(raised.frames)
    off = [remedy for _, remedy in _features(raised, frame) if remedy]
    sentences = []
    if named:
        sentences.append(f"Correct {' or '.join(named)}. ")
    if off:
        sentences.append(f"Try {' or '.join(off)}. ")
    return "".join(sentences)
