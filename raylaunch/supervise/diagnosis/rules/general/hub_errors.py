"""Errors of a model hub with the repository and the switch that they are about."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.exit_reasons import ExitReason
from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason, shorten
from raylaunch.supervise.diagnosis.survival import read_life

_OFFLINE = re.compile(
    r"OfflineModeIsEnabled\b(?:: Cannot reach (https?://[^\s:]{1,200}))?|"
    r"Cannot reach (https?://[^\s:]{1,200}): offline mode is enabled|"
    r"outgoing traffic has been disabled"
)
_NOT_FOUND = re.compile(
    r"RepositoryNotFoundError|\b40[14] Client Error[^\n]{0,200}|"
    r"(?:NotExistError|HTTPError): [^\n]{0,200}(?:not exist|404)"
)
_URL = re.compile(r"https?://[\w.-]{3,80}/\S{3,200}")
_PATH = re.compile(r"https?://[\w.-]{3,80}/(?:api/(?:v1/)?)?(?:models/)?([^\s?'\")]{1,300})")
_NO_NAME = re.compile(
    r"^(?:resolve|raw|tree|blob|revisions?|repo|commits?|files|snapshots?|main|master)$"
)
_OTHER = re.compile(r"Entry ?Not ?Found|Revision ?Not ?Found|Invalid rev id")
_SAYS_REPOSITORY = re.compile(r"Repository ?Not ?Found")
_MODELSCOPE = re.compile(r"modelscope")
_NEAR_LINES = 6


_THROWN = re.compile(
    r"^'([^\n]{3,400}?)' thrown while requesting (?:HEAD|GET|POST) https?://([\w.-]{3,80})/",
    re.MULTILINE,
)
_TRACEBACK = re.compile(r"^Traceback \(most recent call last\)", re.MULTILINE)


def _read_broken_requests(log: ServerLog) -> Iterator[Reading]:
    """Yield the host whose answers broke off, where no retry helped."""
    found = next(iter(log.errors.find(_THROWN)), None)
    if found is None:
        return
    line, match = found
    failed = any(each > line for each, _ in log.errors.find(_TRACEBACK))
    if not failed or read_life(log).progressed > line:
        return
    host = match[2]
    yield Reading(
        reason(
            "hub-unreachable",
            f"The model hub {host} cannot be reached from this node ({shorten(match[1], 120)}): a "
            "firewall, a proxy or the way to it breaks the connection, and vLLM asks it for files "
            "of the model.",
            "Copy the model to the node and give its folder as `model.path` with "
            "`env.HF_HUB_OFFLINE: 1`; or use a mirror or proxy that the node reaches "
            f"(`env.HF_ENDPOINT`, `env.https_proxy`; `curl -I https://{host}` in the container "
            "shows whether it does).",
            "huggingface_hub _http.py",
            "deterministic",
        ),
        line,
        rank=Rank.HINT,
        certain=False,
    )


def read_hub_errors(log: ServerLog) -> Iterator[Reading]:
    """Yield the hub's answers: offline by a switch, or no such repository."""
    yield from _read_bad_names(log)
    yield from _read_broken_requests(log)
    for line, match in log.errors.find(_OFFLINE):
        asked = _repository(match[1] or match[2] or "") or _near(log, line)
        named = f" `{asked}`" if asked else ""
        yield Reading(
            reason(
                "hub-offline",
                f"Offline mode is set (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE), and the cache of "
                f"this node has no complete copy of the model{named}: vLLM would have to ask the "
                "hub.",
                "Give the folder of a complete copy as `model.path` (and `args.tokenizer`), on "
                "every node; or unset `env.HF_HUB_OFFLINE` once and download it (`hf download`), "
                "into the same `env.HF_HOME` that the servers use.",
                "huggingface_hub errors",
                "deterministic",
            ),
            line,
        )
    for line, match in log.errors.find(_NOT_FOUND):
        text = "\n".join(log.cleaned[line : line + _NEAR_LINES])
        url = _URL.search(text)
        if url is None or _OTHER.search(text):
            continue
        if "/resolve/" in url[0] and not _SAYS_REPOSITORY.search(text):
            continue  # a file of the repository, which may be optional
        asked = _repository(url[0])
        if not asked:
            continue
        yield Reading(_no_repository(asked, url[0], match[0]), line)


_BAD_NAME = re.compile(r"Repo id must use alphanumeric[^\n]{0,200}?: '([^'\n]{1,300})'")


def _read_bad_names(log: ServerLog) -> Iterator[Reading]:
    """Yield names that are no repository of a hub: by their form a path, or with a suffix."""
    for line, match in log.errors.find(_BAD_NAME):
        name = match[1]
        if name.startswith(("/", ".", "~")) or name.count("/") > 1:
            what = "is taken for a name of the hub, since no such folder is on this node"
            how = (
                "Give the whole path of a folder that is on every node (mounted into the "
                "container), without `~`."
            )
        elif ":" in name:
            what = "has a suffix after `:`, which this release of vLLM does not know"
            how = (
                "Use a newer vLLM (it reads OWNER/NAME:QUANT for GGUF), or download the file and "
                "give its path, with `args.tokenizer` of the base model."
            )
        else:
            what = "has signs that no name of a hub has"
            how = "Correct the spelling: OWNER/NAME as on the hub, or the path of a folder."
        yield Reading(
            reason(
                "weights-missing",
                f"`{name}` is no repository that the model hub can have: it {what}.",
                f"{how} It is `model.path` (or `args.tokenizer`) of the recipe.",
                "huggingface_hub _validators.py",
                "deterministic",
            ),
            line,
        )


def _no_repository(asked: str, url: str, said: str) -> ExitReason:
    hub = "ModelScope" if _MODELSCOPE.search(url) else "The model hub"
    unauthorised = " (401: it is private, gated, or does not exist)" if "401" in said else ""
    other = (
        "models of Hugging Face need `env.VLLM_USE_MODELSCOPE` unset"
        if hub == "ModelScope"
        else "models of ModelScope need `env.VLLM_USE_MODELSCOPE: true`"
    )
    return reason(
        "hub-no-such-model",
        f"{hub} has no repository `{asked}` that this node may read{unauthorised}.",
        f"Correct `model.path` (spelling, owner/name, or the folder on this node); for a private "
        f"or gated model set `env.HF_TOKEN` of an account with access; {other}.",
        "huggingface_hub and modelscope errors.py",
        "deterministic",
    )


def _repository(url: str) -> str:
    """Return the repository of an address of a hub: owner/name, or a name alone."""
    found = _PATH.search(url)
    if found is None:
        return ""
    names: list[str] = []
    for part in found[1].rstrip(".,:;").split("/"):
        if _NO_NAME.match(part) or len(names) == 2:
            break
        names.append(part)
    return "/".join(names)


def _near(log: ServerLog, line: int) -> str:
    near = log.cleaned[max(0, line - _NEAR_LINES) : line + _NEAR_LINES]
    found = (_URL.search(text) for text in near)
    return next((name for match in found if match and (name := _repository(match[0]))), "")
