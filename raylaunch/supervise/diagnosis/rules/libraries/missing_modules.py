"""Python modules and packages that the server cannot import."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Reading, reason
from raylaunch.supervise.diagnosis.rules.tables.pip_names import MODULES, pip_name

_NO_MODULE = re.compile(
    r"(?:(?:ModuleNotFoundError|ImportError|System error): |^)No module named '?([\w.]{1,120})'?"
    r"(; '[\w.]{1,80}' is not a package)?",
    re.MULTILINE,
)
_PARTIAL = re.compile(
    r"cannot import name '([\w.]{1,80})' from partially initialized module '([\w.]{1,120})' "
    r"\(most likely due to a circular import\)(?: \(([^)\n]{1,300})\))?"
)
# Checks of vLLM and transformers before they import what only some options need.
_NOT_INSTALLED = re.compile(
    r"(?:ImportError|ModuleNotFoundError|RuntimeError|ValueError): ?\s?(?!\S{0,20}No module)"
    r"(?:The )?[`'\"]?([\w.-]{2,40})[`'\"]? (?:package |library )?(?:is|was) not "
    r"(?:installed|found|available)\b[^\n]{0,200}?(?:pip install|[Ii]nstall)|"
    r"(?:ImportError|RuntimeError): [^\n]{0,160}?\b[Pp]lease (?:pip )?install [`'\"]?"
    r"(?!(?:the|an?|it|this|them|that|one|latest|newer|version)\b)([\w.-]{2,40})"
)
_FRAME = re.compile(
    r'File "[^"\n]{0,300}?(?:(?:site|dist)-packages|vllm-workspace/[\w-]{2,20})/(\w{2,40})/'
)
# A function or class that another process has sent: its module is looked for where it arrives.
_SENT = re.compile(r"cloudpickle\.loads|pickle\.loads|serve/_private/replica\.py")
# Packages whose own modules move between releases; a missing one says that the package is there.
_CHANGING = (
    *("torch", "triton", "numpy", "scipy", "mooncake", "lmcache", "xgrammar", "compressed_tensors"),
    *("huggingface_hub", "modelscope", "accelerate", "datasets", "starlette", "fastapi", "openai"),
    *("pydantic", "flashinfer", "torchvision", "tokenizers", "mistral_common"),
)

ON_OTHER_NODES = "Compare the versions with the other nodes (`raylaunch plan NAME`)."


def found_library(line: int, id_: str, cause: str, remedy: str, *, certain: bool = True) -> Reading:
    """Return the reading of a library, symbol or module that is missing or does not fit."""
    told = reason(id_, cause, remedy, "component by library and symbol", "deterministic")
    return Reading(told, line, certain=certain)


def read_missing_modules(log: ServerLog) -> Iterator[Reading]:
    """Yield the modules that an import did not find, and packages that a check misses."""
    for line, match in log.errors.find(_NO_MODULE):
        if match[2]:
            yield _no_package(line, match[1])
            continue
        top = match[1].partition(".")[0]
        if top not in MODULES and _SENT.search("\n".join(log.cleaned[max(0, line - 6) : line])):
            yield _own_code(line, match[1])
            continue
        yield _module(line, match[1], _importer(log, line, top))
    for line, match in log.errors.find(_PARTIAL):
        yield _half_imported(line, *match.groups())
    for line, match in log.errors.find(_NOT_INSTALLED):
        yield _not_installed(line, match[1] or match[2])


def _importer(log: ServerLog, line: int, top: str) -> str:
    """Return the package whose frame is the last one above a line; "" without one."""
    for text in reversed(log.cleaned[max(0, line - 12) : line]):
        found = _FRAME.search(text)
        if found and found[1] != top:
            return found[1]
    return ""


def _own_code(line: int, name: str) -> Reading:
    return found_library(
        line,
        "module-missing",
        f"A worker of Ray was sent an object of the module `{name}` and cannot find that module on "
        "its node: it is code of the program itself, or a package that only the driver has.",
        "Put the code on every node at a place of PYTHONPATH (or give it as `working_dir` or "
        "`py_modules` of runtime_env), or install its package in the environment from which Ray "
        f"was started on all nodes, the same release everywhere. {ON_OTHER_NODES}",
    )


def _moved_module(line: int, name: str, top: str, caller: str) -> Reading:
    names = f"{top}|{caller}" if caller else top
    if top == "triton" and caller == "vllm_ascend":
        return found_library(
            line,
            "versions-differ",
            f"The installed triton has no module `{name}`: on an NPU the package triton-ascend "
            "brings it, and an older release of it, or a triton of its own, is installed.",
            "`pip uninstall -y triton triton-ascend`, then install only the triton-ascend that "
            "this vllm-ascend names (one overwrites files of the other), the same on all nodes; "
            "or use the release's image.",
        )
    return found_library(
        line,
        "versions-differ",
        f"The installed {top} has no module `{name}`, which {caller or 'its caller'} imports: "
        "their releases do not belong together.",
        f"Install the {top} that {caller or 'the caller'} was made for, or the {caller or 'caller'}"
        f" that fits the installed {top} (`pip list | grep -iE '{names}'`, `pip check`), the same "
        "on all nodes, or use the release's image.",
    )


def _moved_in_vllm(line: int, name: str, caller: str) -> Reading:
    who = f"the package {caller}" if caller else "the program that starts vLLM, or a plug-in"
    return found_library(
        line,
        "versions-differ",
        f"The installed vllm has no module `{name}`: {who} was made for another release of "
        "vLLM, in which that module had this place.",
        f"Use a newer release of {caller or 'that program or plug-in'} that knows this vLLM, or "
        "install the vLLM that it names (`pip show vllm`, `pip check`); for vllm-ascend the pair "
        "of its table of versions, or the release's image.",
    )


def _module(line: int, name: str, caller: str) -> Reading:
    top = name.partition(".")[0]
    if re.fullmatch(r"vllm\._\w{0,20}C|vllm_ascend\.(?:\w{0,20}_C|_build_info|_version)", name):
        return found_library(
            line,
            "extension-not-built",
            f"The compiled part `{name}` is missing: {top} was installed from source without "
            "being built, or Python imports the source folder instead of the installed package.",
            f"Install the wheel of {top} or build it again (`pip install -v .` with CANN sourced), "
            "and start from another directory than its source folder.",
        )
    if name != top and top in ("vllm", "vllm_ascend", "transformers", "torch_npu", "ray"):
        if top == "vllm" and caller not in ("vllm", "vllm_ascend"):
            return _moved_in_vllm(line, name, caller)
        other = "vllm-ascend" if top == "vllm" else "vLLM"
        return found_library(
            line,
            "versions-differ",
            f"The installed {top} has no module `{name}`: it is of another release than {other} "
            "or the plug-in that imports it, or only half installed.",
            "Install the pair of releases that belong together (the compatibility table of "
            "vllm-ascend), or use the release's image.",
        )
    if name != top and top in _CHANGING:
        return _moved_module(line, name, top, caller)
    known = MODULES.get(top)
    remedy = known or (
        f"Install `{pip_name(name)}` in the environment from which Ray was started on that node."
    )
    return found_library(
        line,
        "module-missing",
        f"The server's Python cannot find the module `{name}`: it is not installed in this "
        "environment or image, or another interpreter is used than expected.",
        f"{remedy} {ON_OTHER_NODES}",
    )


def _no_package(line: int, name: str) -> Reading:
    """Read that a name is a single module where a package is expected (verl#6224)."""
    top = name.rpartition(".")[0]
    if top == "flash_attn":
        return found_library(
            line,
            "module-shadowed",
            f"`{name}` is asked for although no flash-attn package is here: a stand-in module "
            "`flash_attn` is loaded (MindSpeed puts one in), and vLLM takes it for the library. On "
            "an NPU the library is not needed.",
            "On Ascend use a newer vllm-ascend (PR 7277) or verl (PR 5640), which do not ask for "
            "it; until then delete `sys.modules['flash_attn']` before vLLM is imported, or start "
            "vLLM in a process without MindSpeed. On a GPU install the package: `pip install "
            "flash-attn`.",
        )
    return found_library(
        line,
        "module-shadowed",
        f"Python finds `{top}` as a single file or a stand-in, not as the package that has "
        f"`{name}`: a file of that name hides the package, or a program put a dummy in its place.",
        f"`python -c 'import {top}; print({top}.__file__)'` in the start directory shows which one "
        "is found: rename that file or start from another directory, and remove its folder from "
        f"PYTHONPATH; install the package (`pip install {pip_name(top)}`) if there is none.",
    )


def _half_imported(line: int, name: str, module: str, place: str | None) -> Reading:
    """Read an import that comes back to itself: a file of the program, a checkout, or releases."""
    top = module.partition(".")[0]
    of_vllm = top in ("vllm", "vllm_ascend")
    installed = place is not None and "-packages/" in place
    if of_vllm and module == top and not installed:
        where = f" ({place})" if place else ""
        return found_library(
            line,
            "extension-not-built",
            f"{module} has no `{name}` here{where}: Python imports the source folder of {top}, "
            "in which the compiled parts were never built, instead of the installed package; or "
            "its build failed.",
            f"Start from another folder than the checkout of {top} (`cd /`) and take it off "
            f"PYTHONPATH; to use the checkout build it (`pip install -v -e .` there, after "
            "deleting old `*.so` of another release or CUDA).",
        )
    if installed or of_vllm:
        return found_library(
            line,
            "versions-differ",
            f"Modules of {top} import each other in a circle at `{module}` ({name}): an import "
            "inside it failed or was repeated, because packages of different releases are "
            f"installed, or the installation of {top} is mixed.",
            f"Read the first exception above, if there is one. Install {top} again as a whole "
            f"(`pip install --force-reinstall --no-deps {pip_name(top)}`) with the release that "
            "its caller names, the same on all nodes, or use the release's image.",
            certain=False,
        )
    file = place or f"a file {top}.py or a folder {top} in the start directory"
    return found_library(
        line,
        "module-shadowed",
        f"Python takes {file} for the package {top}: it has the same name and is found first, so "
        "the program imports itself.",
        f"Rename that file (and delete `__pycache__` beside it), or start from another folder; "
        f"`python -c 'import {top}; print({top}.__file__)'` shows which one is found.",
        certain=place is not None,
    )


def _not_installed(line: int, name: str) -> Reading:
    module = name if name.lower() != "ray" else "ray"
    known = MODULES.get(module) or f"`pip install {pip_name(module)}` there (on every node)."
    return found_library(
        line,
        "package-not-installed",
        f"The server needs the Python package {name}, and its import failed. It is not installed "
        "in this environment, or a package that it needs is missing or broken.",
        f"`python -c 'import {module}'` in the server's environment shows the first error. "
        f"{known} Or use the release's image.",
    )
