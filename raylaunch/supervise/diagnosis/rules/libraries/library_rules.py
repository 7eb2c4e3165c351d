"""Libraries, modules and models that do not fit the rest of the installation.

The remedy depends on the component that can be changed: NNAL is not torch, transformers is not
vLLM. The component is read from the library that misses a symbol and from the symbol's namespace.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Reading
from raylaunch.supervise.diagnosis.rules.libraries.missing_modules import (
    found_library,
    read_missing_modules,
)
from raylaunch.supervise.diagnosis.rules.tables.packages import find_package
from raylaunch.supervise.diagnosis.rules.tables.symbol_owners import (
    LINKED_TO,
    SYMBOL_REMEDY,
    find_owner,
    find_provider,
)

_SYMBOL = re.compile(
    r"(?<![\w./+~@-])([\w./+~@-]{1,400}\.so[\w.]{0,20}): undefined symbol: ?([^\s'\")]{1,300})"
)
_LONE_SYMBOL = re.compile(r"(?:^|[^:\s] |[^\w:] ?)undefined symbol: ?(_Z\w{6,300}|[A-Z]\w{5,80})")
# `Ss` is std::string of the C++ ABI before GCC 5, as a parameter or result.
_OLD_ABI = re.compile(r"[RPK]Ss|ESs|Ss(?:$|[A-Z])")
_SYMBOL_VERSION = re.compile(
    r"version [`']((?:GLIBCXX|GLIBC|CXXABI|"
    r"GOMP)_[\w.]{1,20})' not found(?: \(required by ([^)\n]{1,300})\))?"
)
_OTHER_VERSION = re.compile(
    r"(/\S{1,200}\.so[\w.]{0,20}): version [`']((?!GLIBC|CXXABI|GOMP)[A-Za-z]\w{1,20}[\w.]{1,20})' "
    r"not found \(required by ([^)\n]{1,300})\)"
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
_NOT_LOADED = re.compile(r"Failed to import from [\w.]{3,60} with ImportError\([^\n]{8,600}")
_NO_OPERATOR = re.compile(r"'_OpNamespace' '\w{1,60}' object has no attribute")
# NCCL looks for plug-ins and goes on without them.
_OPTIONAL = re.compile(r"NCCL INFO|libnccl-(?:net|tuner|env|profiler)\b")
_STATIC_TLS = re.compile(
    r"(?<![^\s'\"(])([^\s'\"(]{2,300}\.so[\w.]{0,20}): "
    r"cannot (?:allocate memory in|load any more object with) static TLS"
)
_MODEL_TYPE = re.compile(
    r"model type `?([\w.-]{1,100})`? but Transformers does not recognize|"
    r"Transformers does not recognize this architecture|"
    r"The checkpoint you are trying to load has model type `([^`\n]{1,100})`|"
    r"KeyError: '(\w{2,40})'\n(?=[^\n]{0,200}\n?[^\n]{0,200}Transformers does not recognize)|"
    r"Tokenizer class (\w{1,80}) does not exist or is not currently imported"
)


def read_libraries(log: ServerLog) -> Iterator[Reading]:
    """Yield the libraries, modules and models that do not fit."""
    for line, match in log.errors.find(_SYMBOL):
        yield _symbol(line, match[1], match[2])
    for line, match in log.errors.find(_LONE_SYMBOL):
        yield _symbol(line, "a library", match[1])
    yield from _versions(log)
    yield from _operators_not_loaded(log)
    for line, match in log.errors.find(_NO_FUNCTION):
        yield _function(line, match)
    for line, match in log.errors.find(_NO_LIBRARY):
        if _OPTIONAL.search(log.cleaned[line]):
            continue
        yield _library(line, match[1]) if match[1] else _unloadable(line, match[2])
    for line, match in log.errors.find(_STATIC_TLS):
        yield found_library(
            line,
            "library-order",
            f"{match[1]} was loaded too late: the space for its thread variables (static TLS) is "
            "used up by libraries that were loaded before it.",
            f"Load it first: `env.LD_PRELOAD: {match[1]}`, also in the shell that starts Ray; or "
            "use the release's image, or one environment without a second copy of that library.",
        )
    yield from read_missing_modules(log)
    for line, match in log.errors.find(_MODEL_TYPE):
        yield _model_type(line, match)


def _versions(log: ServerLog) -> Iterator[Reading]:
    for line, match in log.errors.find(_OTHER_VERSION):
        yield _other_version(line, *match.groups())
    for line, match in log.errors.find(_SYMBOL_VERSION):
        if match[1].startswith("GLIBC_"):
            yield _old_libc(line, match[1], match[2] or "a library")
            continue
        yield found_library(
            line,
            "system-library-old",
            f"The C or C++ runtime that is found first lacks {match[1]}, which "
            f"{match[2] or 'a library'} needs: the system is older than the package, or conda's "
            "libstdc++ is found before or after the system's.",
            "Use the release's container image, or put a newer libstdc++ first: "
            "`env.LD_PRELOAD` or LD_LIBRARY_PATH of the shell that starts Ray.",
        )


def _old_libc(line: int, version: str, needs: str) -> Reading:
    return found_library(
        line,
        "system-library-old",
        f"The C library of this system lacks {version}, which {needs} needs: the operating system "
        "is older than the package, and the C library cannot be exchanged.",
        "Use the release's container image (it brings its own), or a newer operating system; else "
        "build that package from source on this system (`pip install -v --no-build-isolation "
        "--no-binary PACKAGE`), or install its older release. `ldd --version` shows what is there.",
    )


def _other_version(line: int, found: str, version: str, needs: str) -> Reading:
    own = re.split(r"/lib(?=/|$)", needs)[0]
    first = f"`env.LD_LIBRARY_PATH: {own}/lib` (first)" if own != needs else "LD_LIBRARY_PATH"
    return found_library(
        line,
        "library-version-mixed",
        f"{needs} needs {version}, which {found}, the library that is found first, does not have: "
        "two installations are mixed, as of the system and of conda.",
        f"Put the folder of the one that belongs to it first ({first}, also in the shell that "
        "starts Ray), install that library in the environment (`conda install`, `pip install "
        "--force-reinstall`), or use the release's image.",
    )


def _operators_not_loaded(log: ServerLog) -> Iterator[Reading]:
    """Yield why a compiled part was not loaded, which vLLM only warns of, if it is then missed."""
    if not any(True for _ in log.errors.find(_NO_OPERATOR)):
        return
    for line, match in log.warnings.find(_NOT_LOADED):
        if symbol := _SYMBOL.search(match[0]):
            yield _symbol(line, symbol[1], symbol[2])
        elif library := _NO_LIBRARY.search(match[0]):
            yield _library(line, library[1] or library[2])


def _symbol(line: int, library: str, symbol: str) -> Reading:
    name = library.rpartition("/")[2]
    needs = find_owner(library)
    if library == "a library":
        needs = "its path stands where it was loaded"
    if needs == "an installed package":
        needs = f"the package of {name}"
    missing = find_provider(symbol)
    if missing == "other component" and needs in LINKED_TO and not symbol.startswith("_Z"):
        missing = LINKED_TO[needs]
    if needs == missing:
        return found_library(
            line,
            "symbol-undefined",
            f"{name} ({needs}) needs the symbol `{symbol}`, which the rest of {needs} does not "
            f"have: two releases of {needs} are mixed.",
            f"Source the set_env.sh of one release of {needs} only, and look for another on "
            f"LD_LIBRARY_PATH (`ldd -r {library}`); else install {needs} again.",
        )
    own = re.match(r"_Z(\d{1,2})([a-z]\w{3,120})", symbol)
    if missing == "other component" and needs in ("vLLM", "vllm-ascend") and own:
        return found_library(
            line,
            "extension-not-built",
            f"{name} ({needs}) lacks a function of its own, `{own[2][: int(own[1])]}`: it was "
            "built without the sources of that kernel (for other devices, another CUDA or CANN, "
            "or on top of an older build).",
            f"Install the released wheel or image of {needs}. To build it, remove the old build "
            "first (`rm -rf build .deps; pip uninstall -y vllm`), name the device "
            "(TORCH_CUDA_ARCH_LIST) and use the CUDA that torch was built with.",
        )
    package = library.partition("-packages/")[2].partition("/")[0]
    known = find_package(package) if missing == "other component" else None
    if known:
        return found_library(
            line,
            "symbol-undefined",
            f"{name} of the package {package} ({known.role}) lacks the symbol `{symbol}`: it was "
            "compiled for another device or from other sources, or the package does not fit the "
            "libraries it was built with.",
            known.remedy,
            certain=False,
        )
    lacking = f"which the installed {missing} does not have"
    if missing == "other component":
        lacking = "which no library that it loads has"
    cause = f"{name} ({needs}) needs the symbol `{symbol}`, {lacking}"
    return found_library(
        line,
        "symbol-undefined",
        f"{cause}: they are of different releases{_builds(symbol, missing)}.",
        SYMBOL_REMEDY.get(
            missing, "Install the matching set again, or use the release's image."
        ).format(needs=needs),
    )


def _builds(symbol: str, missing: str) -> str:
    if symbol.startswith("_Z") and "__cxx11" not in symbol and _OLD_ABI.search(symbol):
        return (
            "; the name is of the old C++ ABI (cxx_abi_0, -D_GLIBCXX_USE_CXX11_ABI=0), the "
            "installed one may be a build of the new ABI (cxx_abi_1)"
        )
    if missing == "ATB (NNAL)" or "__cxx11" in symbol:
        return " or of builds with another C++ ABI (cxx_abi_0, cxx_abi_1)"
    return ""


def _function(line: int, match: re.Match[str]) -> Reading:
    name = match[1] or match[2] or match[4]
    if match[2]:
        return found_library(
            line,
            "cann-too-old",
            f"The installed CANN has no operator `{name}` ({match[3]}): CANN is older than this "
            "vllm-ascend or torch_npu needs, or vllm-ascend's own operators are not on the path.",
            "Install the CANN release that this vllm-ascend names and source its set_env.sh; if "
            "the operator is one of vllm-ascend's own, build it again or source "
            "vllm_ascend/_cann_ops_custom/vendors/*/bin/set_env.bash, or use the release's image.",
        )
    return found_library(
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
            f"'torch|vllm|cuda'`), on AMD GPUs the ROCm wheel or image. "
            "On an NVIDIA node install wheels of one CUDA: this one was built "
            f"for CUDA{wanted}, and another one is installed."
        )
        owner = f"CUDA{wanted}: a CUDA build is installed on a node without it"
    elif re.match(
        r"libpython|libstdc|libGL|libgomp|libnuma|libibverbs|librdmacm|libmlx5|libjemalloc|libssl|"
        r"libcrypto|libglog|libgflags|libjsoncpp|libyaml-cpp|libopenblas|libblas|liblapack|libmpi|"
        r"libgfortran|libsndfile|libav|libsw|libcurl|libxml2|libffi|libsqlite|libhiredis|libunwind|"
        r"liburing|libtbb|libtcmalloc|libboost|libX11|libXext|libSM|libgthread|libglib|libpci|"
        r"libsystemd|libelf|libz\b|libbz2|libnl-|libzstd|libgrpc|libetcd",
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
            "Install torch and torch_npu in this environment, of releases that belong together. "
            "Who loads their libraries without importing torch first also needs their lib folders "
            "(site-packages/torch/lib, torch_npu/lib) on LD_LIBRARY_PATH."
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
    return found_library(
        line, "so-missing", f"{name} is not on the library path; it belongs to {owner}.", remedy
    )


def _unloadable(line: int, path: str) -> Reading:
    parts = path.split("/")
    after = parts.index("site-packages") + 1 if "site-packages" in parts else -1
    package = parts[after]
    return found_library(
        line,
        "library-unloadable",
        f"A compiled library of the package {package} cannot be loaded ({path}): it was built for "
        "another torch or Python, or a library that it needs is missing.",
        f"`pip uninstall -y {package}` if the model does not need it (audio, video, images), or "
        f"install the {package} release that fits this torch; `ldd {path}` shows what is missing.",
    )


def _model_type(line: int, match: re.Match[str]) -> Reading:
    name = next((group for group in match.groups() if group), "")
    if cached := re.match(r"Cached(\w{1,60})$", name):
        return found_library(
            line,
            "tokenizer-of-vllm",
            f"tokenizer_config.json names the tokenizer class `{name}`: the files were saved from "
            "a tokenizer of a running vLLM (as training does), which wraps the real class.",
            f'Set `"tokenizer_class": "{cached[1]}"` in tokenizer_config.json under `model.path`, '
            "or copy the tokenizer files of the base model there (`args.tokenizer` names another "
            "folder).",
        )
    return unknown_to_transformers(line, "tokenizer class" if match[4] else "model type", name)


def unknown_to_transformers(line: int, what: str, name: str) -> Reading:
    """Return the reading of a model type or tokenizer class that transformers does not know."""
    named = f" `{name}`" if name else ""
    return found_library(
        line,
        "transformers-too-old",
        f"The installed transformers does not know the {what}{named}: transformers is older "
        "than the model (this is not vLLM's own list of models).",
        "Upgrade transformers in the server's environment to the version in the model's "
        "config.json (`transformers_version`), within the range this vLLM allows, or use a newer "
        "image: a model that is newer than this vLLM (vllm-ascend) needs a newer one of these, "
        "too; models with code of their own need `args.trust-remote-code: true`.",
    )
