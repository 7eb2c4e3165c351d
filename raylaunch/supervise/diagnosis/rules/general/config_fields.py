"""A configuration class of vLLM that lacks what a caller expects of it."""

from __future__ import annotations

import re

from raylaunch.supervise.diagnosis.advice import read_advice
from raylaunch.supervise.diagnosis.readings import Reading, reason
from raylaunch.supervise.diagnosis.rules.tables.option_names import name_options
from raylaunch.supervise.diagnosis.rules.tables.place_options import name_place_options
from raylaunch.supervise.diagnosis.tracebacks import Raised

_OWN_CONFIG = re.compile(
    r"^(?:Vllm|Speculative|Model|Parallel|Cache|Scheduler|LoRA|Compilation|KVTransfer|Device|Load|"
    r"Observability|Pooler|Ascend|EPLB|StructuredOutputs|MultiModal|Attention|Kernel|Offload|"
    r"Decoding|KVEvents)Config$|^(?:Async)?EngineArgs$"
)

_CONTAINER = re.compile(
    r"^(?:State|Namespace|SimpleNamespace|EasyDict|Box|DotDict|AttrDict|Config)$"
)
_OTHER_CONFIG = re.compile(r"^vllm/config/(speculative|lora|kv_transfer)\.py$")
_FIELD_OF = {
    "speculative": "`features.speculative`",
    "lora": "`args.lora-modules`",
    "kv_transfer": "`args.kv-transfer-config`",
}
_GETTERS = ("__getattr__", "__getattribute__")


def read_missing_field(raised: Raised, owner: str, name: str) -> Reading | None:
    """Return what it means that a configuration or a tokenizer has no such attribute."""
    if reading := _read_of_two_packages(raised, owner, name):
        return reading
    if not _OWN_CONFIG.search(owner):
        return _read_mistral_common(raised, owner, name)
    caller = raised.innermost.package.replace("_", "-") if raised.innermost else "the caller"
    cause, remedy = _own(owner, name) if caller == "vllm" else _of_two(owner, name, caller)
    return Reading(
        reason("versions-differ", cause, remedy, "exception by type and place", "deterministic"),
        raised.line,
        certain=False,
    )


def _read_of_two_packages(raised: Raised, owner: str, name: str) -> Reading | None:
    """Return the reading of an attribute that one package asks of an object of another one."""
    if len(raised.frames) < 2 or raised.frames[0].function not in _GETTERS:
        return None
    package = raised.frames[0].package
    caller = next((f.package for f in raised.frames if f.package != package), "")
    # A container of the caller's own values, as starlette's `State`, says nothing of its package.
    if not caller or package == "torch" or _CONTAINER.search(owner):
        return None
    shown = caller.replace("_", "-")
    return Reading(
        reason(
            "versions-differ",
            f"The installed {package} has no `{owner}.{name}`, which {shown} uses: their releases "
            "do not belong together.",
            f"Install the {package} release that {shown} was made for (`pip show {shown}`, `pip "
            "check`), on every node, or use the release's container image.",
            "exception by type and place",
            "deterministic",
        ),
        raised.line,
        certain=False,
    )


def _own(owner: str, name: str) -> tuple[str, str]:
    options = name_options(f"{owner.removesuffix('Config')} config")
    where = f" ({' or '.join(options)})" if options else ""
    cause = (
        f"vLLM's own code expects `{name}` of `{owner}`, which has none: a defect of this release "
        "with this option, or files of two releases are mixed."
    )
    return cause, (
        f"Use another release of vLLM, or start without that option{where}; `pip install "
        "--force-reinstall` removes files of an earlier release."
    )


def _of_two(owner: str, name: str, caller: str) -> tuple[str, str]:
    cause = (
        f"vLLM's `{owner}` has no `{name}`, which {caller} uses: their releases do not belong "
        "together."
    )
    return cause, (
        f"Install the releases of vLLM and {caller} that belong together (`pip list | grep -i "
        "vllm`), or use the release's container image."
    )


def _read_mistral_common(raised: Raised, owner: str, name: str) -> Reading | None:
    """Return the reading of an attribute of a tokenizer that is not of transformers."""
    if not re.search(r"^(?:SentencePiece|Mistral|Instruct)Tokenizer|^Tekkenizer", owner):
        return None
    return Reading(
        reason(
            "versions-differ",
            f"The installed mistral_common has no `{owner}.{name}`, which this vLLM uses: their "
            "releases do not belong together.",
            "Install the mistral_common that this vLLM names (`pip show vllm`; `pip install -U "
            "mistral_common`), or leave out `args.tokenizer-mode: mistral`.",
            "exception by type and place",
            "deterministic",
        ),
        raised.line,
        certain=False,
    )


def correct(raised: Raised) -> str:
    """Return what to change where a check of a configuration class refused its values."""
    options = name_options(raised.message)
    # A class that checks its values with those of another one names only the other's.
    callers = (_OTHER_CONFIG.search(frame.module_path) for frame in raised.frames[1:])
    fields = [_FIELD_OF[each[1]] for each in callers if each]
    options += [field for field in fields[:1] if field not in options]
    advice = read_advice(raised.message)
    advised = f"The message advises: {advice}" if advice else ""
    if not options and raised.frames[0].module_path.endswith("ascend_config.py"):
        options = ["`args.additional-config`"]
    if options:
        what = f"Correct {' or '.join(options)}, or use a release that knows this value"
        return f"{advised}. {what}" if advised else what
    if advised:
        return advised
    if "quantiz" in raised.frames[0].module_path:
        return (
            "Serve weights that are quantised in another way (`model.path`; for vllm-ascend those "
            "of ModelSlim, W8A8 or W4A8, with `args.quantization: ascend`) or not at all, or use a "
            "release that supports this quantisation"
        )
    if options := name_place_options(raised.frames):
        return f"Correct {' or '.join(options)}, or use a release that supports it"
    return "Correct the option that the message names, under `args`, `env` or `parallel`"
