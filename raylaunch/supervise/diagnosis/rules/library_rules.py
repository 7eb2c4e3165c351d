"""Libraries, modules and models that do not fit the rest of the installation.

The remedy depends on the component that can be changed: NNAL is not torch, transformers is not
vLLM. The component is read from the library that misses a symbol and from the symbol's namespace.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Reading, reason

_SYMBOL = re.compile(
    r"(?<![\w./+~@-])([\w./+~@-]{1,400}\.so[\w.]{0,20}): undefined symbol: ?(\S{1,300})"
)
_SYMBOL_VERSION = re.compile(
    r"version [`']((?:GLIBCXX|GLIBC|CXXABI|"
    r"GOMP)_[\w.]{1,20})' not found(?: \(required by ([^)\n]{1,300})\))?"
)
_NO_FUNCTION = re.compile(
    r"[Ff]ailed to find function ((?:acl|hccl|Hccl|rt)\w{2,60})|"
    r"(aclnn\w{2,60}) or \w{2,80} not in (lib\w{1,40}\.so)|"
    r"(?:dlsym|symbol lookup error)[^\n]{0,80}\b((?:acl|Hccl|rt)[A-Z]\w{2,60})"
)
_NO_LIBRARY = re.compile(
    r"(?<![\w/.-])([A-Za-z][\w.+-]{1,60}\.so[\w.]{0,20}): cannot open shared object file|"
    r"Could not load this library: (\S{3,300}\.so[\w.]{0,20})"
)
# NCCL looks for plug-ins and goes on without them.
_OPTIONAL = re.compile(r"NCCL INFO|libnccl-(?:net|tuner|env|profiler)\b")
_STATIC_TLS = re.compile(
    r"(?<![^\s'\"(])([^\s'\"(]{2,300}\.so[\w.]{0,20}): "
    r"cannot (?:allocate memory in|load any more object with) static TLS"
)
_NO_MODULE = re.compile(
    r"(?:(?:ModuleNotFoundError|ImportError|System error): |^)No module named '?([\w.]{1,120})'?",
    re.MULTILINE,
)
_MODEL_TYPE = re.compile(
    r"model type `([^`\n]{1,100})` but Transformers does not recognize|"
    r"Transformers does not recognize this architecture|"
    r"The checkpoint you are trying to load has model type `([^`\n]{1,100})`|"
    r"KeyError: '(\w{2,40})'\n(?=[^\n]{0,200}\n?[^\n]{0,200}Transformers does not recognize)|"
    r"Tokenizer class (\w{1,80}) does not exist or is not currently imported"
)
_ON_OTHER_NODES = "Compare the versions with the other nodes (`raylaunch plan NAME`)."


def read_libraries(log: ServerLog) -> Iterator[Reading]:
    """Yield the libraries, modules and models that do not fit."""
    for line, match in log.errors.find(_SYMBOL):
        yield _symbol(line, match[1], match[2])
    for line, match in log.errors.find(_SYMBOL_VERSION):
        yield _found(
            line,
            "system-library-old",
            f"The C or C++ runtime that is found first lacks {match[1]}, which "
            f"{match[2] or 'a library'} needs: the system is older than the package, or conda's "
            "libstdc++ is found before or after the system's.",
            "Use the release's container image, or put a newer libstdc++ first: "
            "`env.LD_PRELOAD` or LD_LIBRARY_PATH of the shell that starts Ray.",
        )
    for line, match in log.errors.find(_NO_FUNCTION):
        yield _function(line, match)
    for line, match in log.errors.find(_NO_LIBRARY):
        if _OPTIONAL.search(log.cleaned[line]):
            continue
        yield _library(line, match[1]) if match[1] else _unloadable(line, match[2])
    for line, match in log.errors.find(_STATIC_TLS):
        yield _found(
            line,
            "library-order",
            f"{match[1]} was loaded too late: the space for its thread variables (static TLS) is "
            "used up by libraries that were loaded before it.",
            f"Load it first: `env.LD_PRELOAD: {match[1]}`, also in the shell that starts Ray; or "
            "use the release's image, or one environment without a second copy of that library.",
        )
    for line, match in log.errors.find(_NO_MODULE):
        yield _module(line, match[1])
    for line, match in log.errors.find(_MODEL_TYPE):
        yield _model_type(line, match)


def _found(line: int, id_: str, cause: str, remedy: str, *, certain: bool = True) -> Reading:
    told = reason(id_, cause, remedy, "component by library and symbol", "deterministic")
    return Reading(told, line, certain=certain)


def _symbol(line: int, library: str, symbol: str) -> Reading:
    name = library.rpartition("/")[2]
    needs = _owner(library)
    if needs == "an installed package":
        needs = f"the package of {name}"
    missing = _provider(symbol)
    if missing == "other component" and needs in _LINKED_TO and not symbol.startswith("_Z"):
        missing = _LINKED_TO[needs]
    if needs == missing:
        return _found(
            line,
            "symbol-undefined",
            f"{name} ({needs}) needs the symbol `{symbol}`, which the rest of {needs} does not "
            f"have: two releases of {needs} are mixed.",
            f"Source the set_env.sh of one release of {needs} only, and look for another on "
            f"LD_LIBRARY_PATH (`ldd -r {library}`); else install {needs} again.",
        )
    cause = (
        f"{name} ({needs}) needs the symbol `{symbol}`, which the installed {missing} does not have"
    )
    return _found(
        line,
        "symbol-undefined",
        f"{cause}: they are of different releases{_builds(symbol, missing)}.",
        _SYMBOL_REMEDY.get(
            missing, "Install the matching set again, or use the release's image."
        ).format(needs=needs),
    )


def _builds(symbol: str, missing: str) -> str:
    if missing == "ATB (NNAL)" or "__cxx11" in symbol:
        return " or of builds with another C++ ABI (cxx_abi_0, cxx_abi_1)"
    return ""


def _provider(symbol: str) -> str:
    """Return the component that should have the symbol, by its mangled namespace."""
    for pattern, component in _PROVIDERS:
        if re.match(pattern, symbol):
            return component
    return "other component"


_PROVIDERS = (
    (r"_Z\w{0,4}?N?K?(?:3atb|3Mki|4AsdOps|6AsdOps)", "ATB (NNAL)"),
    (r"_Z\w{0,4}N?K?(?:3c10|2at|5torch|8c10_cuda)", "torch"),
    (r"_Z\w{0,4}N?K?(?:7c10_npu|9at_npu|9torch_npu)", "torch_npu"),
    (
        (
            r"(?:_Z\w{0,4}N?K?(?:2ge|3ops|2op|4hccl|5optil|3gert)|acl|Acl|Hccl|hccl|rt[A-Z]|ge|hal|"
            r"dcmi|drv)"
        ),
        "CANN",
    ),
    (r"Msprof|Prof[A-Z]|Adx|Adump|Tsd|mmp|dlog|Dlog|slog|TprtGet|Ra[A-Z]|Mc2", "CANN"),
    (r"Py[A-Z_]|_Py", "Python"),
    (r"cu[A-Z]|nccl|_ZN?\w{0,4}4cuda", "CUDA"),
)
# Below whom a library is linked, for a plain C symbol that names no component.
_LINKED_TO = {"torch_npu": "CANN", "vllm-ascend": "CANN", "ATB (NNAL)": "CANN", "CANN": "CANN"}
_SYMBOL_REMEDY = {
    "ATB (NNAL)": "Install the NNAL package of the same release as the CANN toolkit and the one "
    "torch_npu was built for, and `source /usr/local/Ascend/nnal/atb/set_env.sh` (its `--cxx_abi` "
    "must fit torch) before `ray start`; do not mix ATB builds on LD_LIBRARY_PATH.",
    "CANN": "Install the CANN toolkit that {needs} was built for (usually a newer one) and source "
    "its set_env.sh, or use the release's image.",
    "torch": "Install the torch release that {needs} was built for (`pip list | grep torch`), or "
    "build {needs} again.",
    "torch_npu": "Install the torch_npu release that {needs} was built for, or build it again.",
    "Python": "{needs} was built for another Python: install its wheel for this interpreter.",
    "CUDA": "A CUDA build is installed in an NPU or CPU environment: install the right build.",
}


def _owner(library: str) -> str:
    for pattern, owner in _OWNERS:
        if re.search(pattern, library):
            return owner
    return "an installed package"


_OWNERS = (
    (r"nnal|libatb|libtbe_adapter|libasdops|libmki|liblcal", "ATB (NNAL)"),
    (r"torch_npu|libop_plugin_atb", "torch_npu"),
    (r"vllm_ascend", "vllm-ascend"),
    (r"torchvision", "torchvision"),
    (r"torchaudio", "torchaudio"),
    (r"triton", "triton"),
    (r"/vllm/|vllm_flash_attn|_C(?:\.abi3)?\.so|_moe_C", "vLLM"),
    (r"mooncake|transfer_engine", "Mooncake"),
    (r"Ascend|libhccl|libascend|libge|libruntime|libopapi|libacl", "CANN"),
    (r"/torch/|libtorch", "torch"),
)


def _function(line: int, match: re.Match[str]) -> Reading:
    name = match[1] or match[2] or match[4]
    if match[2]:
        return _found(
            line,
            "cann-too-old",
            f"The installed CANN has no operator `{name}` ({match[3]}): CANN is older than this "
            "vllm-ascend or torch_npu needs, or vllm-ascend's own operators are not on the path.",
            "Install the CANN release that this vllm-ascend names and source its set_env.sh; if "
            "the operator is one of vllm-ascend's own, build it again or source "
            "vllm_ascend/_cann_ops_custom/vendors/*/bin/set_env.bash, or use the release's image.",
        )
    return _found(
        line,
        "cann-too-old",
        f"The installed CANN has no function `{name}`: CANN is older than this torch_npu (or "
        "vllm-ascend) needs.",
        "Upgrade CANN to the release that this vllm-ascend names, or use the release's image. If "
        "only graph capture needs the function (aclmdlRI...), `args.enforce-eager: true` avoids "
        "it.",
    )


def _library(line: int, name: str) -> Reading:
    if re.match(r"libatb|libtbe_adapter|libasdops|libmki", name):
        remedy = (
            "`source /usr/local/Ascend/nnal/atb/set_env.sh` before `ray start`; install NNAL if "
            "it is not there."
        )
        owner = "ATB (package NNAL)"
    elif re.match(r"libascend_hal|libdcmi|libdrv|libc_sec|libmmpa|libdevmmap", name):
        remedy = (
            "Mount /usr/local/Ascend/driver into the container and put driver/lib64, "
            "lib64/driver and lib64/common on LD_LIBRARY_PATH."
        )
        owner = "the NPU driver"
    elif re.match(r"libcud|libcublas|libnccl|libnv", name):
        number = re.search(r"\.so\.(\d{1,3})", name)
        wanted = f" {number[1]}" if number and name.startswith("libcudart") else ""
        remedy = (
            "On an NPU or CPU node install the build without CUDA (`pip list | grep -iE "
            f"'torch|vllm|cuda'`). On a GPU node install wheels of one CUDA: this one was built "
            f"for CUDA{wanted}, and another one is installed."
        )
        owner = f"CUDA{wanted}: a CUDA build is installed on a node without it"
    elif re.match(
        r"libpython|libstdc|libGL|libgomp|libnuma|libibverbs|librdmacm|libjemalloc|libssl|libglog",
        name,
    ):
        remedy = (
            f"Install the system package that has {name} on this node (`apt-file search "
            f"{name}`), or use the release's image."
        )
        owner = "the operating system"
    elif re.match(r"ascend_transport|libtransfer_engine|libmooncake", name):
        remedy = (
            "Put the folder of Mooncake's libraries (usually /usr/local/lib) on LD_LIBRARY_PATH "
            "of the shell that starts Ray, or use the release's image."
        )
        owner = "Mooncake"
    elif re.match(r"libtorch|libc10", name):
        remedy = (
            "Install torch and torch_npu in this environment, of releases that belong together."
        )
        owner = "torch"
    else:
        remedy = (
            "`source /usr/local/Ascend/ascend-toolkit/set_env.sh` "
            "(/usr/local/Ascend/cann/set_env.sh "
            "since CANN 8.5) before `ray start`; if the file is nowhere, its package is not "
            "installed."
        )
        owner = "CANN or another package"
    return _found(
        line, "so-missing", f"{name} is not on the library path; it belongs to {owner}.", remedy
    )


def _unloadable(line: int, path: str) -> Reading:
    parts = path.split("/")
    after = parts.index("site-packages") + 1 if "site-packages" in parts else -1
    package = parts[after]
    return _found(
        line,
        "library-unloadable",
        f"A compiled library of the package {package} cannot be loaded ({path}): it was built for "
        "another torch or Python, or a library that it needs is missing.",
        f"`pip uninstall -y {package}` if the model does not need it (audio, video, images), or "
        f"install the {package} release that fits this torch; `ldd {path}` shows what is missing.",
    )


def _module(line: int, name: str) -> Reading:
    top = name.partition(".")[0]
    if re.fullmatch(r"vllm\._\w{0,20}C|vllm_ascend\.(?:\w{0,20}_C|_build_info|_version)", name):
        return _found(
            line,
            "extension-not-built",
            f"The compiled part `{name}` is missing: {top} was installed from source without "
            "being built, or Python imports the source folder instead of the installed package.",
            f"Install the wheel of {top} or build it again (`pip install -v .` with CANN sourced), "
            "and start from another directory than its source folder.",
        )
    if name != top and top in ("vllm", "vllm_ascend", "transformers", "torch_npu", "ray"):
        other = "vllm-ascend" if top == "vllm" else "vLLM"
        return _found(
            line,
            "versions-differ",
            f"The installed {top} has no module `{name}`: it is of another release than {other} "
            "or the plug-in that imports it, or only half installed.",
            "Install the pair of releases that belong together (the compatibility table of "
            "vllm-ascend), or use the release's image.",
        )
    known = _MODULES.get(top)
    remedy = known or f"Install `{top}` in the environment from which Ray was started on that node."
    return _found(
        line,
        "module-missing",
        f"The server's Python cannot find the module `{name}`: it is not installed in this "
        "environment or image, or another interpreter is used than expected.",
        f"{remedy} {_ON_OTHER_NODES}",
    )


_CANN_PATH = (
    "`source /usr/local/Ascend/ascend-toolkit/set_env.sh` before `ray start`: it sets PYTHONPATH "
    "for CANN's own modules."
)
_MODULES = {
    "torch_npu": "Install the torch_npu that fits torch and CANN, or use a released image; "
    "`which python vllm` shows whether the right environment is active.",
    "vllm_ascend": "Install vllm-ascend in the environment from which Ray was started.",
    "vllm": "Install vLLM in the environment from which Ray was started (`which python vllm`).",
    "acl": _CANN_PATH,
    "te": _CANN_PATH,
    "tbe": _CANN_PATH,
    "hccl": _CANN_PATH,
    "llm_datadist": _CANN_PATH,
    "torchair": "It is a part of torch_npu (torch_npu/dynamo/torchair), not a package to install: "
    "use the torch_npu of the release's image, or add that folder's parent to PYTHONPATH.",
    "torch_atb": "`source /usr/local/Ascend/nnal/atb/set_env.sh` (NNAL) before `ray start`.",
    "atb_llm": "It belongs to MindIE's ATB models: use MindIE's image, and source its set_env.sh.",
    "mooncake": "Install mooncake-transfer-engine (for NPUs the build of the vllm-ascend image).",
    "transformers_modules": "It is the model's own code, which only the process that read the "
    "model knows: put the model under the same path on every node, set `args.trust-remote-code: "
    "true`, and use a release of vLLM that sends such code to Ray's workers.",
    "mindie_turbo": "Install MindIE-Turbo, or use a vllm-ascend release that does not need it.",
}


def _model_type(line: int, match: re.Match[str]) -> Reading:
    name = next((group for group in match.groups() if group), "")
    named = f" `{name}`" if name else ""
    what = "tokenizer class" if match[4] else "model type"
    return _found(
        line,
        "transformers-too-old",
        f"The installed transformers does not know the {what}{named}: transformers is older "
        "than the model (this is not vLLM's own list of models).",
        "Upgrade transformers in the server's environment to the version in the model's "
        "config.json (`transformers_version`), within the range this vLLM allows, or use a newer "
        "image; models with code of their own need `args.trust-remote-code: true`.",
    )
