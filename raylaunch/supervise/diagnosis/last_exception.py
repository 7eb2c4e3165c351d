"""The exception that no signature and no rule knows: what its type, its words and its place mean.

The layer below all others. An engineer who has never seen a message still reads from it what kind
of failure it is: sizes that do not fit, a missing attribute, a refused combination, a child program
that failed. Each kind has a remedy and a class. None of them is certain.
"""

from __future__ import annotations

import re

from raylaunch.supervise.diagnosis.advice import read_advice
from raylaunch.supervise.diagnosis.exit_reasons import ExitReason, describe_exit
from raylaunch.supervise.diagnosis.readings import reason, shorten
from raylaunch.supervise.diagnosis.rules.tables.exception_meanings import MEANINGS, Meaning
from raylaunch.supervise.diagnosis.rules.tables.features import advise_release, name_features
from raylaunch.supervise.diagnosis.rules.tables.known_timeouts import name_timeout
from raylaunch.supervise.diagnosis.rules.tables.name_owners import find_name_owner
from raylaunch.supervise.diagnosis.rules.tables.option_names import name_options
from raylaunch.supervise.diagnosis.rules.tables.packages import find_package, name_foundation
from raylaunch.supervise.diagnosis.rules.tables.place_options import name_place_options
from raylaunch.supervise.diagnosis.tracebacks import Frame, Raised

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
    known = find_package(frame.package if frame else _owner(raised))
    of_package = f" {known.remedy}" if known and meaning.name != "package-failed" else ""
    kind = "transient" if serving else meaning.kind
    beside = ""
    if meaning.name in ("call-mismatch", "attribute-missing") and frame:
        beside = _beside(frame)
    if beside:
        kind = meaning.kind  # a restart meets the same packages
    advice = beside or meaning.remedy.format(package=package)
    if frame is None and package == "vLLM":
        advice = advice.replace("release of vLLM,", "release of vLLM (on NPUs of vllm-ascend),")
    # Two packages that call each other wrongly: no option of them helps.
    options = "" if meaning.name == "call-mismatch" else _options(raised, frame)
    remedy = _defect(raised, frame, meaning.name) or f"{options}{waits}{advice}{of_package}"
    return reason(
        meaning.name,
        f"{cause}{during}: {quoted}{place}.{through}",
        f"{_advised(raised.message)}{remedy}",
        "exception by its words",
        kind,
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


def _by_place(frame: Frame | None) -> Meaning | None:
    """Return the meaning of an exception whose words say nothing: where it was raised."""
    if frame is None or not frame.package:
        return None
    if frame.package in _OWN:
        remedy = "Use another release of {package}, or switch off the feature of that file."
        return Meaning(name="code-failed", cause="{package} failed", remedy=remedy)
    if known := find_package(frame.package):
        return Meaning(
            name="package-failed",
            cause=f"The package {{package}} ({known.role}) failed",
            remedy=known.remedy.replace("{", "{{").replace("}", "}}"),
        )
    return Meaning(
        name="package-failed",
        cause="The package {package} failed",
        remedy="Correct its configuration, or install the release of {package} that belongs to "
        "this vLLM.",
    )


def _by_topic(raised: Raised, frame: Frame | None) -> Meaning | None:
    """Return the meaning of an exception that only names a feature or an option."""
    if not (_features(raised, frame) or name_options(raised.message)):
        return None
    return Meaning(
        name="feature-failed",
        cause="A part of {package} failed",
        remedy="If it comes again, start without that feature or with another value of that "
        "option, or use another release of {package}.",
        kind="transient",
    )


_DEFECTS = (
    *("tensor-shapes", "attribute-missing", "lookup-failed", "assertion-failed"),
    *("code-failed", "not-set-up", "index-outside", "call-mismatch", "refused"),
)


def _defect(raised: Raised, frame: Frame | None, meaning: str) -> str:
    """Return the remedy of an exception in vLLM's own code that goes through a known feature.

    It names no setting, so the release is wrong for this combination. "" for any other one.
    """
    if meaning not in _DEFECTS or frame is None or frame.package not in ("vllm", "vllm_ascend"):
        return ""
    features = [each for each in _features(raised, frame) if each[1]]
    if not features or name_options(raised.message):
        return ""
    ascend = any(each.package == "vllm_ascend" for each in raised.frames)
    return advise_release("vllm-ascend" if ascend else "vLLM", features)


def _beside(frame: Frame) -> str:
    """Return the remedy for a package that does not fit the packages that it is built on."""
    foundation = name_foundation(frame.package)
    if not foundation:
        return ""
    name = frame.package.replace("_", "-")
    return (
        f"{name} is of another time than what it is built on ({foundation}), one of which was "
        f"updated alone: `pip install -U {name}`, or an older {foundation}; `pip check` and `pip "
        "show` name the releases that fit."
    )


_OBJECT = re.compile(r"'(\w{3,80})' object has no attribute|^(\w{3,80})[.(]")


def _owner(raised: Raised) -> str:
    """Return the package of the object that a message without a traceback names; "" if none."""
    found = _OBJECT.search(raised.message)
    return find_name_owner(found[1] or found[2]).replace("-", "_") if found else ""


def _package(raised: Raised, frame: Frame | None) -> str:
    if frame is not None and frame.package:
        return frame.package.replace("_", "-")
    if owner := _owner(raised):
        return owner.replace("_", "-")
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
        verb = "Set" if any(": " in each for each in named) else "Correct"
        sentences.append(f"{verb} {' or '.join(named)}. ")
    if off:
        sentences.append(f"Try {' or '.join(off)}. ")
    return "".join(sentences)
