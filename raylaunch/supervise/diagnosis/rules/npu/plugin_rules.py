"""Python packages of Ascend that are found in the wrong place, or do not fit vLLM at load."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Reading, exception_reading, shorten
from raylaunch.supervise.diagnosis.tracebacks import Raised, find_exceptions

_OF_A_FOLDER = re.compile(
    r"module '([a-z]\w{1,40})' has no attribute '(?:__version__|__file__|LLM|SamplingParams|"
    r"Tensor|nn|EngineArgs|register|is_initialized|init|remote|get_gpu_ids|get_runtime_context|"
    r"cluster_resources|ndarray|array|AutoConfig|AutoTokenizer)'|"
    r"partially initialized module '([a-z]\w{1,40})' has no attribute"
)
_NO_NAME_IN = re.compile(
    r"module '(([a-z]\w{1,40})(?:\.\w{1,40}){0,5})' has no attribute '(\w{1,80})"
)
_NO_NPU = re.compile(r"^module 'torch' has no attribute 'npu'")
_NO_COMPILED_PART = re.compile(
    r"No module named '((torch_npu|torch|triton|mooncake)\.(?:_C\w{0,20}|lib\w{0,20}|"
    r"_build\w{0,20}|engine|store|version))'"
)
_LOADING = re.compile(
    r"load_general_plugins|load_plugins_by_group|register\w{0,20}$|adapt_patch|apply_patch"
)
_PLUGIN_FILE = re.compile(r"^vllm_ascend/(?:__init__|utils|patch/|platform\.py|worker/__init__)")
_OWN_PART = re.compile(
    r"(camem) allocator is not available|(?i:custom[ _](?:ops?|kernels?|operators?) (?:is|are) not "
    r"(?:available|compiled|built|enabled))|COMPILE_CUSTOM_KERNELS"
)
_INSTALLED = re.compile(r"(?:site|dist)-packages/")


def read_plugins(log: ServerLog) -> Iterator[Reading]:
    """Yield packages that another folder hides, and failures while a plug-in is loaded."""
    for raised in find_exceptions(log):
        for rule in (
            _no_npu,
            _shadowed,
            _no_compiled_part,
            _no_kernels,
            _while_loading,
            _lone_attribute,
        ):
            if reading := rule(raised):
                yield reading
                break


def _no_npu(raised: Raised) -> Reading | None:
    if raised.type != "AttributeError" or not _NO_NPU.search(raised.message):
        return None
    return exception_reading(
        raised.line,
        "torch-npu-not-loaded",
        "torch has no `npu` here: torch_npu is not installed in this environment, was not "
        "imported in this process, or its import failed before.",
        "`python -c 'import torch, torch_npu; print(torch.npu.is_available())'` in the environment "
        "from which Ray was started shows which it is: source CANN's set_env.sh, install the "
        "torch-npu of the installed torch (the same first three numbers), unset "
        "TORCH_DEVICE_BACKEND_AUTOLOAD=0, or import torch_npu first in a program of your own. On "
        "a GPU the program was made for NPUs.",
    )


def _lone_attribute(raised: Raised) -> Reading | None:
    """Read a name that a module lacks, of torch_npu, or where no traceback tells who asks."""
    found = _NO_NAME_IN.search(raised.message) if raised.type == "AttributeError" else None
    if found is None:
        return None
    module, top, name = found[1], found[2], found[3]
    asked_by_itself = raised.frames and raised.frames[0].package == top
    if top == "torch_npu" and not asked_by_itself:
        return exception_reading(
            raised.line,
            "versions-differ",
            f"The installed torch_npu has no `{module}.{name}`: its operators come and go with its "
            "releases, and this one is older (or newer) than its caller was made for.",
            "Install the torch_npu that the caller names, with its torch and CANN (for vllm-ascend "
            "its table of versions; a post or dev release may be needed: `pip list | grep -i "
            "torch`), the same on all nodes; or use the release's container image.",
        )
    if raised.frames or top in ("torch", "triton"):
        return None
    return exception_reading(
        raised.line,
        "versions-differ",
        f"The installed {top} has no `{module}.{name}` that its caller uses: the two are of "
        f"different releases, or {top} is half installed, or a folder of that name hides it.",
        f"Install the {top} that the package in the traceback names (`pip show {top}`, `pip "
        f"check`), on all nodes; `python -c 'import {top}; print({top}.__file__)'` shows which one "
        "is found; or use the release's container image.",
    )


def _shadowed(raised: Raised) -> Reading | None:
    found = _OF_A_FOLDER.search(raised.message) if raised.type == "AttributeError" else None
    if found is None:
        return None
    package = found[1] or found[2]
    return exception_reading(
        raised.line,
        "package-shadowed",
        f"Python finds a folder or file called `{package}` that is not the installed package "
        f"({shorten(raised.message, 100)}): the working directory or PYTHONPATH contains one, or "
        "the package is only half installed.",
        f"Start from another directory (`cd /`), or rename what is called `{package}` there; "
        f"`python -c 'import {package}; print({package}.__path__)'` shows which one is found. If "
        f"it is the installed one, install {package} again.",
    )


def _no_compiled_part(raised: Raised) -> Reading | None:
    found = _NO_COMPILED_PART.search(raised.message)
    if found is None:
        return None
    name, package = found[1], found[2]
    place = raised.innermost.path if raised.innermost else ""
    from_source = place and not _INSTALLED.search(place)
    where = f" ({place.rpartition('/')[0]})" if from_source else ""
    return exception_reading(
        raised.line,
        "extension-not-built",
        f"The compiled part `{name}` is missing: Python imports the source folder of {package}"
        f"{where} instead of the installed package, or {package} was not built for this Python.",
        f"Start from another directory than the source folder, and take it off PYTHONPATH; "
        f"otherwise install the wheel of {package} for this Python and processor.",
    )


def _no_kernels(raised: Raised) -> Reading | None:
    """Read that vllm-ascend was installed without the part that it compiles itself."""
    found = _OWN_PART.search(raised.message)
    if found is None or not raised.innermost or raised.innermost.package != "vllm_ascend":
        return None
    sleep = " To start without it leave out `args.enable-sleep-mode`." if found[1] else ""
    return exception_reading(
        raised.line,
        "extension-not-built",
        f"The compiled part of vllm-ascend is missing ({shorten(raised.message, 120)}): it was "
        "installed without kernels of its own, or they do not load with this torch or CANN.",
        "Build and install vllm-ascend again with COMPILE_CUSTOM_KERNELS=1 and CANN's set_env.sh "
        f"sourced, or use the release's image, which has them.{sleep}",
    )


def _while_loading(raised: Raised) -> Reading | None:
    """Read what vllm-ascend's own set-up raised: it patches vLLM by name, for one release of it."""
    own = next((f for f in raised.frames if not f.module_path.startswith("torch/")), None)
    if own is None or raised.type not in ("AttributeError", "TypeError", "KeyError", "NameError"):
        return None
    functions = [frame.function for frame in raised.frames]
    if not _PLUGIN_FILE.match(own.module_path) or not any(map(_LOADING.search, functions)):
        return None
    return exception_reading(
        raised.line,
        "versions-differ",
        f"vllm-ascend failed while it was loaded into vLLM ({own.module_path}, {own.function}: "
        f"{shorten(f'{raised.type}: {raised.message}', 160)}): it adapts one release of vLLM by "
        "name, and this is another one, or VLLM_VERSION names another one than is installed.",
        "Unset `env.VLLM_VERSION` (also in the shell that starts Ray) unless vLLM was built from "
        "source, then it must be its release; install the pair of releases that belong together "
        "(`pip list | grep -i vllm`), or use the release's image.",
    )
