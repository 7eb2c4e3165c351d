"""Flags and configuration values that this release refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from raylaunch.plan.known_flags import read_flags as read_known_flags
from raylaunch.supervise.diagnosis.advice import read_advice
from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Reading, reason, shorten
from raylaunch.supervise.diagnosis.rules.quant_rules import is_quant_field, read_quant_field
from raylaunch.supervise.diagnosis.rules.tables.flag_history import flag_successor, is_flag_of_all
from raylaunch.supervise.diagnosis.rules.tables.option_names import name_options

_CHOICE = re.compile(
    r"error: argument (--[\w-]{1,60})(?:/-{1,2}[\w-]{1,40}){0,4}: invalid choice: "
    r"'?([^'\n(]{1,80}?)'? "
    r"\(choose from ([^\n]{0,4000})"
)
_INVALID = re.compile(
    r"error: argument (--[\w-]{1,60})(?:/-{1,2}[\w-]{1,40}){0,4}: "
    r"(?:\d{1,4} validation errors? for \w{1,60}\n)?"
    r"(?!invalid choice|expected|not allowed|ignored)\s{0,8}([^\n]{4,600})"
)
_AMBIGUOUS = re.compile(
    r"error: ambiguous option: (--[\w-]{1,60})(?:=\S{0,100})? could match ([^\n]{4,300})"
)
_REQUIRED = re.compile(r"error: the following arguments are required: ([^\n]{2,200})")
_RULE = re.compile(r"^The value of ?(\w{1,40}?) ?must (?:meet|be|not)\b[^\n]{0,300}", re.MULTILINE)
_UNRECOGNISED = re.compile(r"error: unrecognized arguments: (\S{1,200})([^\n]{0,300})")
_NO_FIELD = re.compile(
    r"\b(\w{0,30}(?:EngineArgs|Config|LLM))(?:\.__init__)?\(\) got an unexpected keyword argument "
    r"'([\w-]{1,60})'"
)
_FIELD = re.compile(
    r"(?<!\d)\d{1,6} validation errors? for (\w{1,60})\n([\w.]{1,80})\n\s{1,8}([^\n\[]{1,300})"
)
_VALUE_ERROR = re.compile(
    r"(?<!\d)\d{1,6} validation errors? for (\w{1,60})\n\s{0,8}"
    r"(?:Value error|Assertion (?:error|failed)), ([^\n]{1,1000})"
)
_PYDANTIC_TAIL = re.compile(r" ?\[type=\w{1,60}, input_(?:value|type)=")
_GOT = re.compile(r"input_value=([^\n]{1,80}?), input_type=(\w{1,40})")
_CONFIGS = {
    "SpeculativeConfig": "features.speculative",
    "CompilationConfig": "args.compilation-config",
    "KVTransferConfig": "args.kv-transfer-config",
    "ParallelConfig": "parallel",
    "LoRAConfig": "args.lora-modules, args.max-lora-rank",
    "StructuredOutputsConfig": "args.structured-outputs-config",
    "MultiModalConfig": "args.limit-mm-per-prompt",
    "ModelConfig": "config.json` under `model.path`, or `args.hf-overrides",
    "LoRARequest": "args.lora-modules",
    "PEFTHelper": "adapter_config.json` of the adapter in `args.lora-modules",
}
_COMMANDS = ("serve", "vllm", "python", "python3", "bash", "/bin/bash", "sh")
_QUANT = re.compile(
    r"(?:Unknown|Invalid) quantization method: ?'?ascend|quantization method '?ascend'? is not"
)


def read_flags(log: ServerLog) -> Iterator[Reading]:
    """Yield the flags and values that argparse or pydantic refused."""
    for line, match in log.errors.find(_CHOICE):
        flag, value, choices = match.groups()
        if flag == "--quantization" and value == "ascend":
            yield _no_ascend_quantisation(line)
            continue
        yield _flag(
            line,
            f"This release of vLLM does not accept `{value}` for {flag}; it knows "
            f"{shorten(choices.rstrip(')'), 200)}.",
            f"Choose one of these for {flag} under `args`, or use the release in which `{value}` "
            "exists.",
        )
    for line, match in log.errors.find(_INVALID):
        yield _invalid_value(line, match[1], _PYDANTIC_TAIL.split(match[2])[0] + _got(match[2]))
    yield from _read_parser(log)
    for line, match in log.errors.find(_RULE):
        yield Reading(
            reason(
                "mindie-config",
                f"MindIE refused the value of {match[1]} in its configuration: {shorten(match[0])}",
                f"Correct {match[1]} in MindIE's config.json (or the name that the launcher gives "
                "it).",
                "MindIE param_checker",
                "deterministic",
            ),
            line,
        )
    for line, _ in log.errors.find(_QUANT):
        yield _no_ascend_quantisation(line, "quant-mismatch")
    for line, match in log.errors.find(_UNRECOGNISED):
        if not match[1].startswith("-"):
            yield _positional(line, match[1])
            continue
        yield _unrecognised(line, match[1], match[2])
    for line, match in log.errors.find(_NO_FIELD):
        yield _flag(
            line,
            f"{match[1]} of this release of vLLM has no field `{match[2]}`: it was removed, "
            "renamed or is misspelt, or belongs to the command line only (and is written with `_` "
            "in Python).",
            _in_python(match[2])
            or f"{flag_successor(match[2])} Correct or remove `{match[2].replace('_', '-')}` under "
            "`args`; `vllm serve --help=all` on the node lists the flags of this release.".strip(),
        )
    yield from _read_pydantic(log)
    yield from _read_budget(log)
    yield from _read_fields(log)


def _read_fields(log: ServerLog) -> Iterator[Reading]:
    """Read the fields that pydantic refused: of an option, or of a checkpoint's description."""
    for line, match in log.errors.find(_FIELD):
        owner, field, message = match.groups()
        if is_quant_field(field):
            yield read_quant_field(
                line, field, f"{message}{_got(''.join(log.cleaned[line + 2 : line + 3]))}"
            )
            continue
        if owner.startswith("Ascend") and "Unexpected keyword" in message:
            yield _ascend_key(line, field, owner)
            continue
        named = (
            f"`{field}` in `args.additional-config`"
            if owner.startswith("Ascend")
            else f"`{field.replace('_', '-')}` under `args`"
        )
        yield Reading(
            reason(
                "bad-config-value",
                f"vLLM refused `{field}` of {owner}: {shorten(message, 200).rstrip(' .')}"
                f"{_got(log.cleaned[line + 2] if line + 2 < len(log.cleaned) else '')}.",
                f"Correct {named}: `vllm serve --help=all` on the node (or vllm-ascend's page of "
                "options) shows its values.",
                "pydantic",
                "deterministic",
            ),
            line,
        )


def _ascend_key(line: int, field: str, owner: str) -> Reading:
    """Read that vllm-ascend does not know a key of its options."""
    flag = field.replace("_", "-")
    by_flag = (
        f"; here the flag `args.{flag}` sets it: leave that out"
        if flag in read_known_flags()
        else ""
    )
    return Reading(
        reason(
            "bad-config-value",
            f"This release of vllm-ascend does not know the key `{field}` in its options "
            f"({owner}): it is misspelt, was removed, or belongs to another release.",
            f"Correct or remove `{field}` in `args.additional-config`{by_flag}. The page "
            "'Additional Configuration' of this vllm-ascend release lists the keys; a newer "
            "release may take it.",
            "vllm_ascend/ascend_config.py; vllm-ascend#16661",
            "deterministic",
        ),
        line,
    )


def _in_python(name: str) -> str:
    """Return what to do about an argument of Python code that is written as a flag."""
    if "-" not in name:
        return ""
    return (
        f"In Python and in other programs' options write `{name.replace('-', '_')}`: only the "
        "command line takes hyphens. Remove it if it is a flag of the API server (parsers of tools "
        "and reasoning, chat template, host): the engine has no such argument."
    )


def _unrecognised(line: int, flag: str, rest: str) -> Reading:
    more = f" (with {shorten(rest, 80)})" if rest.strip() else ""
    listed = "`vllm serve --help=all` on the node lists the flags of this release."
    if not flag.startswith("--") and len(flag) > 3:
        return _flag(
            line,
            f"vLLM has no flag {flag}{more}: a long flag begins with two hyphens.",
            f"Write it as `{flag.lstrip('-').replace('_', '-')}` under `args` (raylaunch adds the "
            f"two hyphens), or --{flag.lstrip('-')} in a script; {listed}",
        )
    told = flag_successor(flag)
    cause = (
        f"The program does not know {flag}{more} as it is given, though each release of vLLM has "
        "this flag: flag and value came as one word, or another program reads it."
        if is_flag_of_all(flag)
        else f"This release of vLLM has no flag {flag}{more}: it was removed, renamed, comes with "
        "a newer release or a plug-in that is not loaded, or is misspelt."
    )
    return _flag(
        line,
        cause,
        f"{told} {listed[0].upper()}{listed[1:]}"
        if told
        else "If the recipe or the tutorial is of a newer release, use that release's image; else "
        f"correct or remove it under `args`. {listed}",
    )


def _read_parser(log: ServerLog) -> Iterator[Reading]:
    """Read what argparse says of a command as a whole."""
    for line, match in log.errors.find(_AMBIGUOUS):
        yield _flag(
            line,
            f"{match[1]} is no flag of this command, and it begins several: {match[2].strip()}.",
            "Write the flag's whole name under `args`; the model is given by `model.path` and not "
            "as --model, which `vllm serve` takes as its first argument.",
        )
    for line, match in log.errors.find(_REQUIRED):
        yield _flag(
            line,
            f"The command lacks arguments that it needs: {match[1].strip()}.",
            "Give them under `args` (the model by `model.path`); `vllm serve --help=all` on the "
            "node shows the command's form.",
        )


_BUDGET = re.compile(
    r"(max_num_(?:scheduled|batched)_tokens) is set to (-?\d{1,9}), which does not allow"
)


def _read_budget(log: ServerLog) -> Iterator[Reading]:
    """Read that the tokens of a step are used up by those that are drafted for each sequence."""
    for line, match in log.errors.find(_BUDGET):
        yield Reading(
            reason(
                "config-refused",
                f"No tokens are left to schedule in a step ({match[1]} is {match[2]}): speculative "
                "decoding reserves its drafted tokens for each of `max-num-seqs` sequences, and "
                "together they need more than `max-num-batched-tokens`.",
                "Raise `args.max-num-batched-tokens` above max-num-seqs times the drafted tokens, "
                "or lower `args.max-num-seqs` or `num_speculative_tokens` in "
                "`features.speculative`.",
                "vllm/config/vllm.py; vllm#50708",
                "deterministic",
            ),
            line,
        )


def _read_pydantic(log: ServerLog) -> Iterator[Reading]:
    """Read the checks of vLLM's configuration classes, with the option that each is about."""
    headed = set()
    for line, match in log.errors.find(_VALUE_ERROR):
        headed.add(line + 1)
        yield _refused_value(line, *match.groups())
    for line, match in log.errors.find(_BARE_VALUE_ERROR):
        if line not in headed:  # the line above, with the name of the class, is not in the log
            yield _refused_value(line, "", match[1])


def _refused_value(line: int, owner: str, said: str) -> Reading:
    message = _PYDANTIC_TAIL.split(said)[0]
    options = name_options(message) or _option_of(owner)
    options = options or ["the option of that name under `args`"]
    named = " or ".join(options)
    advice = read_advice(message)
    advised = f"The message advises: {advice}. " if advice else ""
    what = (
        f"Leave out {named}, or give it another value, one that the message names; or use a newer "
        "release of vLLM (and vllm-ascend), which may support it"
        if _NOT_SUPPORTED.search(message) and ": " not in named
        else f"{'Set' if ': ' in named else 'Correct'} {named}"
    )
    return Reading(
        reason(
            "bad-config-value",
            f"vLLM refused a value{f' of {owner}' if owner else ''}: {shorten(message)}",
            f"{advised}{what}; `vllm serve --help=all` on the node shows the values of this "
            "release.",
            "pydantic",
            "deterministic",
        ),
        line,
    )


def _option_of(owner: str) -> list[str]:
    """Return the option whose value a configuration class holds, as --pooler-config."""
    if owner in _CONFIGS:
        return [f"`{_CONFIGS[owner]}`"]
    flag = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", owner).lower()
    return [f"`args.{flag}`"] if flag in read_known_flags() else []


_BARE_VALUE_ERROR = re.compile(
    r"^\s{0,8}(?:Value error|Assertion failed), ([^\n]{1,1000}?) "
    r"\[type=(?:value|assertion)_error, input_value=",
    re.MULTILINE,
)
_NOT_SUPPORTED = re.compile(
    r"(?i)(?:not|only) (?:yet |currently )?(?:be )?(?:supported|implemented|available|compatible)|"
    r"unsupported|incompatible|does ?n[o']t (?:yet )?support|can(?:not|'t) (?:be used|support|use)"
)


_WHOLE_OBJECT = re.compile(r"(\{[^\n]{2,2000}\})")


def _is_json(said: str) -> bool:
    """Whether a refused value is a well-formed object: a name in it is refused, not the form."""
    found = _WHOLE_OBJECT.search(said)
    try:
        return found is not None and isinstance(json.loads(found[1]), dict)
    except ValueError:
        return False


def _invalid_value(line: int, flag: str, said: str) -> Reading:
    name = flag.removeprefix("--")
    field = name_options(flag) or [f"`args.{name}`"]
    if _is_json(said):
        return _flag(
            line,
            f"vLLM refused the value of {flag}: {shorten(said)}. It is well-formed JSON: this "
            "release does not know a name or value in it, or a required one is missing.",
            f"Compare the keys and values in {field[0]} with the documentation of this release "
            "(`vllm serve --help=all` on the node), or use the release that the guide is for, "
            "usually a newer one.",
        )
    return _flag(
        line,
        f"vLLM refused the value of {flag}: {shorten(said)}.",
        f"Correct {field[0]} (`--{name}`): JSON where the flag takes an object, a number with its "
        "unit where it takes one; `vllm serve --help=all` on the node shows the form.",
    )


def _got(said: str) -> str:
    """Return what pydantic says that it was given; "" for a whole object."""
    found = _GOT.search(said)
    if found is None or "ArgsKwargs" in found[1]:
        return ""
    return f" (given: {found[1]}, a value of type {found[2]})"


def _positional(line: int, value: str) -> Reading:
    if value in _COMMANDS:
        return _flag(
            line,
            f"`{value}` is given to vLLM as an argument: the container's entrypoint already is "
            "`vllm serve`, and the command repeats it.",
            "Give only the model and its flags after the image, or set the entrypoint (`docker run "
            "--entrypoint`, `command` in Kubernetes); raylaunch starts the server itself in a "
            "container that runs `ray start`.",
        )
    return _flag(
        line,
        f"vLLM does not expect `{value}` where it stands: a second model, a value that a blank or "
        "a missing quote has split, or a model without --model for an entry point that needs it.",
        "Give the model by `model.path` only, and write each value under `args` as one value "
        "(quoted if it holds blanks).",
    )


def _flag(line: int, cause: str, remedy: str) -> Reading:
    return Reading(reason("bad-flag", cause, remedy, "argparse", "deterministic"), line)


def _no_ascend_quantisation(line: int, id_: str = "bad-flag") -> Reading:
    told = reason(
        id_,
        "This release does not know the quantisation `ascend`: the vllm-ascend plug-in adds it, "
        "and this release of it does not, or the plug-in is not loaded.",
        "Use a vllm-ascend release that supports it (0.9 or newer; `pip show vllm-ascend`), check "
        "that the plug-in is activated (`Platform plugin ascend is activated` in the log), or "
        "serve unquantised weights without `args.quantization`.",
        "vllm-ascend#902",
        "deterministic",
    )
    return Reading(told, line)
