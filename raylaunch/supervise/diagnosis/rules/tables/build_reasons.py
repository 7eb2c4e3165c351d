"""Why a build from source failed, by the words of CMake, make, the compiler or setup.py."""

from __future__ import annotations

import re
from typing import NamedTuple


class BuildReason(NamedTuple):
    """Words of a build, what they mean, and what to do. `{0}` is what the words name."""

    words: str
    cause: str
    remedy: str


_TOOLS = (
    "`apt-get install -y gcc g++ cmake ninja-build libnuma-dev git` (openEuler: `yum install -y "
    "gcc gcc-c++ cmake ninja-build numactl-devel git`)"
)
_NO_ISOLATION = "`pip install -v --no-build-isolation .`"
_CANN = (
    "`source /usr/local/Ascend/ascend-toolkit/set_env.sh` (/usr/local/Ascend/cann/set_env.sh since "
    "CANN 8.5) and NNAL's set_env.sh in the shell of the build"
)
_IMAGE = "or use the release's image or wheel, which need no build."
# Ordered. Sources: setup.py, CMakeLists.txt and docs/source/installation.md of vllm-ascend 0.23;
# the issues are of vllm-ascend where no other repository is named.
BUILD_REASONS: tuple[BuildReason, ...] = (
    BuildReason(  # vllm-ascend#439
        r"No CMAKE_(C(?:XX)?)_COMPILER could be found|The (C(?:XX)?) compiler identification is "
        r"unknown|No such file or directory: '(g\+\+|c\+\+)'",
        "CMake finds no C++ compiler on this machine",
        f"Install the compilers and tools: {_TOOLS}, and build again; another compiler is named by "
        f"CXX_COMPILER and C_COMPILER; {_IMAGE}",
    ),
    BuildReason(
        r"Could not find compiler set in environment\s{1,20}variable (\w{2,10})",
        "the environment variable {0} names a compiler that is not there",
        f"Unset {{0}} or set it to an installed compiler (`which gcc g++`); {_TOOLS} installs one.",
    ),
    BuildReason(
        r"CMake ([\d.]{3,12}) or higher is required",
        "the installed CMake is older than {0}",
        "Install it with pip in the same environment (`pip install 'cmake>={0}'`; `cmake "
        "--version` must then show that one) and remove build/ before the next attempt.",
    ),
    BuildReason(
        r"Expected PyTorch version (\d[\w.+]{2,20}), but found (\d[\w.+]{2,20})",
        "the source of vllm-ascend is for torch {0}, and the build finds torch {1}",
        f"Install torch {{0}} with its torch_npu and build with {_NO_ISOLATION}, or take the "
        "source of the release for torch {1}.",
    ),
    BuildReason(
        r"ascendc_kernel_cmake does not exist|Please install CANN|CANN package (?:is )?not found",
        "the build does not find the CANN toolkit (its ascendc_kernel_cmake)",
        f"Install the whole CANN toolkit (`--full`) of this release, {_CANN} (it sets "
        f"ASCEND_HOME_PATH), and build again; {_IMAGE}",
    ),
    BuildReason(
        r"Could not determine chip type automatically|Unable to recognize chip name: (\S{2,40}),|"
        r"(Get chip info failed)",
        "setup.py cannot tell for which NPU it shall build, because `npu-smi` is not there or says "
        "nothing (a `docker build` sees no NPU)",
        "Set SOC_VERSION before the build: `export SOC_VERSION=ascend910b1` (A2), "
        "ascend910_9391 (A3), ascend310p1 (300I DUO).",
    ),
    BuildReason(  # vllm-ascend#3998
        r"No rule to make target '(/tmp/pip-build-env-[^'\n]{1,200}?/(?:torch|torch_npu)/"
        r"[^'\n]{1,80})'",
        "the build looks for torch in pip's temporary build environment ({0}), which has another "
        "torch than the one that is installed, or is of an earlier attempt",
        f"Remove build/ in the source folder and build against the installed torch: {_NO_ISOLATION}"
        ", with the torch and torch_npu of this release installed before.",
    ),
    BuildReason(
        r'package configuration file provided by "(pybind11|Torch|TorchNPU)"|'
        r"Could NOT find (pybind11|Torch|Python3?)\b",
        "CMake does not find {0} in the environment of the build",
        "Install it there (`pip install pybind11 'setuptools-scm>=8' ninja` with torch and "
        f"torch_npu of this release) and build with {_NO_ISOLATION}.",
    ),
    BuildReason(
        r"(?:third_party|catlass)/?[^\n]{0,120}(?:does not contain a CMakeLists|No such file|"
        r"is not an existing)|'?(catlass/[\w./-]{1,80})'?:? (?:file not found|No such file)|"
        r"(dependency catlass is missing)|fatal: (?:unable to access|clone of) 'https://[^'\n]"
        r"{0,80}catlass",
        "a part that the source takes from another repository (csrc/third_party, catlass) is not "
        "there",
        "In the source folder run `git submodule update --init --recursive` (with access to its "
        "server, or copy csrc/third_party from a machine that has it), and build again.",
    ),
    BuildReason(  # LMCache-Ascend#13, vllm-ascend#9421
        r"fatal error: '?((?:inner_interface/|lib/|interface/|impl/)?(?:inner_kernel_operator|"
        r"kernel_(?:operator|tensor|macros|tpipe|utils|log|common)|lib/matmul)\w{0,30}\.h)'?",
        "the installed CANN has no {0}, a header for kernels that this source includes: CANN is of "
        "another release than the source was written for, is incomplete, or two releases are mixed",
        "Install the whole CANN toolkit that this release of the source names (vllm-ascend's table "
        f"of versions), {_CANN}, remove build/ and build again; or take the release of the source "
        f"for the CANN that is there; {_IMAGE}",
    ),
    BuildReason(  # LMCache-Ascend#180
        r"fatal error: '?((?:hccl|acl|aclnn\w{0,20}|aclnnop|experiment|graph|register|exe_graph|"
        r"tiling|opdev|hccs?|adapter|mmpa|toolchain|platform)/[\w./-]{2,80}\.h(?:pp)?)'?:? (?:file "
        r"not|No such)",
        "the installed CANN has no {0}: its set_env.sh was not sourced, or CANN is of another "
        "release than the source was written for (8.5 moved headers of HCCL and others)",
        "`find /usr/local/Ascend -name '*.h' -path '*{0}'` tells which: if it is there, "
        f"{_CANN}; if not, use the CANN that this source names, or a newer release of the source "
        "that knows this CANN; remove build/ before building again.",
    ),
    BuildReason(  # vllm-ascend#3403, #3832
        r"fatal error: (torch_npu/[\w./-]{2,80}\.h(?:pp)?): No such file",
        "the build does not find torch_npu's headers ({0}): pip builds in an environment of its "
        "own, or the torch_npu there is of another release",
        "Install the torch and torch_npu that this vllm-ascend names, remove build/, and build "
        f"against them: {_NO_ISOLATION}; {_IMAGE}",
    ),
    BuildReason(
        r"fatal error: (atb/[\w./-]{2,80}\.h): No such file|cannot find -l(atb|asdops|mki)\b",
        "the build does not find NNAL (ATB)",
        "Install the NNAL package of the same release as CANN, and `source "
        "/usr/local/Ascend/nnal/atb/set_env.sh` in the shell of the build.",
    ),
    BuildReason(
        r"fatal error: (numa\.h|numaif\.h|Python\.h)|cannot find -l(numa)\b",
        "a development package of the operating system is missing ({0})",
        "`apt-get install -y libnuma-dev python3-dev` (openEuler: `yum install -y numactl-devel "
        "python3-devel`), the Python headers for the Python that builds.",
    ),
    BuildReason(  # vllm-ascend#3135, #591
        r"fatal error: '(cstdint|cstddef|cmath|algorithm|type_traits|string|vector|iostream|"
        r"limits|utility|memory)' file not found",
        "CANN's compiler does not find the headers of the C++ library ('{0}'): no g++ with headers "
        "is installed, or it lies where the compiler does not look",
        "Install g++ (`apt-get install -y g++`; openEuler: `yum install -y gcc-c++ "
        "libstdc++-devel`) of one version, and name its folders if it still fails: `export "
        "CPLUS_INCLUDE_PATH=/usr/include/c++/12:/usr/include/c++/12/$(uname -m)-openEuler-linux` "
        "(`ls /usr/include/c++` shows yours), also where the server starts.",
    ),
    BuildReason(
        r"Killed signal terminated program (\w{2,12})|fatal error: Killed|internal compiler error: "
        r"Killed|g?make(?:\[\d{1,2}\])?: [^\n]{0,120} Killed$",
        "the compiler was killed: the build ran out of memory",
        "Build with fewer processes (`MAX_JOBS=4 pip install -v --no-build-isolation .`), or on a "
        "machine with more memory.",
    ),
    BuildReason(
        r"unrecognized (?:command[- ]line )?option '?-std=(\S{3,8}\d\d)|C\+\+17 (?:or later )?"
        r"compatible compiler is required|requires? (?:a )?(?:gcc|GCC|g\+\+) ?(?:>=|version|\d)",
        "the C++ compiler is too old for this source (it needs C++17, gcc 9 or newer)",
        "Install a newer gcc and g++ (openEuler 22.03 SP and Ubuntu 22.04 have one) and name them "
        f"by CXX_COMPILER and C_COMPILER, remove build/, and build again; {_IMAGE}",
    ),
    BuildReason(
        r"cannot find -l(ascendcl|hccl|runtime|nnopbase|opapi|platform|register|ge_\w{1,20}|"
        r"torch_npu)\b",
        "the linker does not find lib{0}.so",
        f"{_CANN}; if it is torch_npu's, build with {_NO_ISOLATION} where torch_npu is installed; "
        "a build without NPU also needs CANN's devlib folder on LD_LIBRARY_PATH.",
    ),
    BuildReason(
        r"'((?:aclrt|acl[A-Z]|aclnn|ACL_|Hccl|HCCL_)\w{2,60})' (?:was not declared|undeclared|has "
        r"not been declared|does not name a type)|use of undeclared identifier '((?:aclrt|aclnn|"
        r"ACL_|Hccl|HCCL_|AscendC)\w{0,60})'",
        "the source uses `{0}`, which the installed CANN does not have: CANN is older than this "
        "source needs",
        f"Install the CANN that this release of the source names, {_CANN}, remove build/ and build "
        "again; or take an older release of the source.",
    ),
    BuildReason(
        r"'((?:c10_npu|at_npu|torch_npu)(?:::\w{1,60})*)' has not been declared|is not a member of "
        r"'((?:c10_npu|at_npu|torch_npu)[\w:]{0,60})'",
        "the source uses a part of torch_npu ({0}) that the installed one does not have",
        f"Install the torch_npu that this release names and build with {_NO_ISOLATION}.",
    ),
    BuildReason(  # LMCache-Ascend#255
        r"(extract_host_stub|ascendc_compile_kernel|ascendc_\w{2,40})\.py: error: ([^\n]{3,160})",
        "CANN's own build tool {0}.py refuses how this source calls it ({1}): CANN is of another "
        "release than the source was written for",
        "Use the release of the source that names the installed CANN (or the newest one), or the "
        "CANN that this source names; remove build/ first.",
    ),
    BuildReason(  # vllm-ascend#2035
        r"(TooFewObj): There is no obj file in this directory",
        "CANN's build of the kernels has no object file to link: SOC_VERSION names an NPU for "
        "which this release has no kernels, or the compiler (bisheng) of another CANN was used",
        "Set SOC_VERSION to this NPU (A2 ascend910b1, A3 ascend910_9391, 300I DUO ascend310p1), "
        f"{_CANN}, remove build/ and build again with the release that supports this NPU; "
        f"`COMPILE_CUSTOM_KERNELS=0` builds without kernels; {_IMAGE}",
    ),
    BuildReason(  # vllm-ascend#7697
        r"\[CMakeFiles/(opbuild_gen_\w{2,30})\.dir/[^\n]{2,200}\] Error|"
        r"Error running (build_aclnn\.sh)",
        "CANN's generator of operator interfaces (opbuild) failed on vllm-ascend's own operators: "
        "its libraries are not found, CANN is of another release than this source names, or an "
        "earlier build left files",
        f"{_CANN}, use the CANN of vllm-ascend's table of versions, remove csrc/build, csrc/output "
        "and build/, run `git submodule update --init --recursive`, and build again with "
        f"SOC_VERSION set; the first `error` above the line says more; {_IMAGE}",
    ),
    BuildReason(  # LMCache-Ascend#27
        r"Command 'source [^'\n]{1,2000}' returned non-zero exit status 127",
        "the shell of the build does not find a program (status 127): cmake, or `source`, which "
        "only bash has and sh has not",
        f"Install the tools ({_TOOLS}, or `pip install cmake`), and run the build where /bin/sh is "
        "bash, with CANN's set_env.sh sourced by hand before.",
    ),
    BuildReason(
        r"\b(bisheng|ccec|cmake|ninja|git|g\+\+): (?:command )?not found|"
        r"No such file or directory: '(bisheng|ccec|cmake|ninja|git)'|"
        r"Cannot find CMake executable",
        "a program of the build is not on PATH ({0})",
        f"Install the tools: {_TOOLS}; `bisheng` and `ccec` come with CANN ({_CANN}).",
    ),
    BuildReason(
        r"setuptools[-_]scm was unable to detect version|unable to detect version for /",
        "the source folder has no git history, from which setup.py takes the version",
        "Set `SETUPTOOLS_SCM_PRETEND_VERSION` to the release (0.11.0), or clone the repository "
        "with git instead of unpacking an archive.",
    ),
    BuildReason(
        r"detected dubious ownership in repository at '([^'\n]{2,200})'",
        "git refuses the source folder {0}, because another user owns it",
        "`git config --global --add safe.directory {0}`, then build again.",
    ),
)


def fill_reason(reason: BuildReason, match: re.Match[str]) -> tuple[str, str]:
    """Return cause and remedy with what the words name."""
    named = [group for group in match.groups() if group]

    def fill(text: str) -> str:
        for number in range(2):
            value = named[number] if number < len(named) else ""
            if not value:
                text = text.replace(f" ({{{number}}})", "")
            text = text.replace(f"{{{number}}}", value or "it")
        return text

    return fill(reason.cause), fill(reason.remedy)
