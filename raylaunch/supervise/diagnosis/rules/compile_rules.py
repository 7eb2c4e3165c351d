"""Compilers that a start calls: of Triton, of torch, of CANN, and the C compiler below them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Reading, reason, shorten
from raylaunch.supervise.diagnosis.rules.tables.compile_reasons import (
    find_build_reason,
    find_compile_reason,
)
from raylaunch.supervise.diagnosis.rules.tables.packages import find_package
from raylaunch.supervise.diagnosis.rules.tables.pip_names import pip_name

_NO_COMPILER = re.compile(
    r"Failed to find C compiler|No working C\+\+ compiler found|InvalidCxxCompiler|"
    r"No such file or directory: '(gcc|g\+\+|cc|c\+\+|clang|bisheng|ccec|ninja|nvcc)'|"
    r"Ninja is required to load C\+\+ extensions"
)
_NO_HEADER = re.compile(r"fatal error: ([\w./+-]{2,80}\.h(?:pp)?): No such file")
_HEADERS = (
    (r"Python\.h", "python3-dev of this Python version"),
    (r"torch_npu/", "torch_npu where the code is built (its headers are in the wheel)"),
    (r"(?:torch|ATen|c10)/", "torch where the code is built"),
    (
        r"(?:acl|hccl|aclnn|graph|register|exe_graph|runtime)/",
        "CANN toolkit, and source its set_env.sh",
    ),
    (r"atb/", "NNAL (ATB), and source its set_env.sh"),
)
_TRITON = re.compile(
    r"MLIRCompilationError|triton\.(?:compiler|runtime)\.errors\.\w{1,40}|\[ERROR\]\[Triton\]|"
    r"PTXASError|ptxas fatal|CalledProcessError: Command '\[[^\n]{0,200}/ptxas\b|"
    r"Failed to run BiSheng\w{0,8} (?:\w{1,8} )?pipeline|Failed to compile BiShengLIR[^\n]{0,40}|"
    r"error executing : \S{0,200}/bisheng\b|PassManager::run failed|bishengir-compile[^\n]{0,80}"
    r"(?:failed|error|returned non-zero)|"
    r"CalledProcessError: Command '\['[^'\n]{0,200}bishengir[\w-]{0,30}'|"
    r"Failed to compile /\S{1,200}launcher\w{0,30}\.cxx"
)
_COMPILER_ERROR = re.compile(r"\berror: ([^\n]{8,300})")
_COMPILER_LINES = 12
_TOO_LARGE = re.compile(r"\b(?:error: |Due to )((?i:\w{2,4} overflow)\b[^\n]{0,200})")
_NO_TARGET = re.compile(r"--target option: Cannot find option named '([\w-]{2,40})'")
_INDUCTOR = re.compile(
    r"(?:torch\._inductor\.exc\.\w{1,40}|torch\._dynamo\.exc\.\w{1,40}|BackendCompilerFailed|"
    r"InductorError|CppCompileError): ?([^\n]{0,400})"
)
_TELLING = re.compile(r"fatal|not defined|Required: \d|[Ee]rror: ")
_TRACED = re.compile(r"Failed running call_(?:function|method|module) ([\w.<>]{2,80}?)\(\*")
_CANN_COMPILER = re.compile(
    r"\[Init\]\[Env\] ?init env failed|AclSetCompileopt|SetPrecisionMode:|GEInitialize failed|"
    r"build op model failed|TbeInitialize|[Ii]nit(?:ialize)? (?:te|tbe) fusion (?:fail|error)|"
    r"(?:PyInit|import) (?:te|tbe)\b[^\n]{0,60}fail|Failed to import Python module \["
    r"(\w{1,40})(?:: ([^\]\n]{1,200}))?"
)
_SOC_VERSION = re.compile(
    r"SocVersion ?= ?(\w{3,40})|(?:option|platform) (?:named )?'(Ascend\w{1,30})'"
)
_FAILED_OPERATOR = re.compile(
    r"(?:Failed to compile Op|[Cc]ompile [Oo]p) ?\[(\w{2,80})[^\]\n]{0,80}\]"
)
_OPERATOR_LINES = 60
_OPERATOR_ERROR = re.compile(r"\b(?:fatal )?error: ([^\n]{8,300})")
_LAST_EXCEPTION = re.compile(
    r"^\s{0,8}(?:\w{1,40}\.){0,6}([A-Z]\w{1,40}(?:Error|Exception): [^\n]{8,300})"
)
_HEADER_OF_CANN = re.compile(
    r"'(__clang_cce\w{1,60}\.h|kernel_\w{1,40}\.h|\w{1,40}\.h)' file not found"
)
_MISSING_MODULE = re.compile(r"No module named '([\w.]{1,80})'")
_MODULES_OF_CANN = ("te", "tbe", "tvm", "te_fusion", "auto_tune", "schedule_search", "impl")
# The Python packages of CANN's installation guide ("installing dependencies").
_NEEDED_BY_CANN = (
    "attrs, cython, numpy, decorator, sympy, cffi, pyyaml, pathlib2, psutil, protobuf, scipy, "
    "requests and absl-py"
)
_CODE_5000 = re.compile(r"(?<!\d)50000[0-5](?!\d)")
_CANN_LINES = 8


_BUILD = re.compile(
    r"\bld(?:\.\w{1,8})?: cannot find -l([\w+-]{1,40})|"
    r"\bsh: (?:\d{1,4}|line \d{1,4}): (\S{2,200}): (?:command )?not found|"
    r"error: identifier \"([\w:]{2,80})\" is undefined|"
    r"nvcc fatal {0,3}: ([^\n]{3,200})"
)
_BUILD_TOOLS = re.compile(r"[Nn]inja|nvcc|NVRTC|collect2|cc1plus|cpp_ext|[Jj]it/|cuda")
_BUILD_LINES = 12
_IN_PACKAGE = re.compile(r"(?:site|dist)-packages/(\w{2,40})/")


def read_compilers(log: ServerLog) -> Iterator[Reading]:
    """Yield what a compiler needs and does not find, and what it cannot compile."""
    yield from _builds_at_start(log)
    for line, match in log.errors.find(_NO_COMPILER):
        tool = f"`{match[1]}`" if match[1] else "a C compiler"
        if match[1] == "nvcc":
            yield _no_nvcc(log, line)
            continue
        yield _found(
            line,
            "compiler-missing",
            f"{tool} is not installed on this node or not on PATH, and Triton or torch compiles "
            "code at start-up.",
            "Install gcc and g++ (for `bisheng` and `ccec` source CANN's set_env.sh) in the "
            "server's environment, or use the release's image; `args.enforce-eager: true` avoids "
            "torch's own compilation, not Triton's.",
        )
    for line, match in log.errors.find(_NO_HEADER):
        package = next(
            (package for words, package in _HEADERS if re.match(words, match[1])),
            f"that has {match[1]} (`apt-file search {match[1]}`)",
        )
        yield _found(
            line,
            "header-missing",
            f"The C compiler does not find {match[1]}: a development package is not installed on "
            "this node, and Triton or torch compiles code at start-up.",
            f"Install the package {package}, or use the release's image.",
        )
    yield from _failed_compilations(log)
    yield from _cann_operators(log)
    yield from _cann_compiler(log)


def _builds_at_start(log: ServerLog) -> Iterator[Reading]:
    """Read what the compilers of a package say that builds its kernels at the start."""
    for line, match in log.errors.find(_BUILD):
        near = log.cleaned[max(0, line - _BUILD_LINES) : line + _BUILD_LINES]
        if not any(_BUILD_TOOLS.search(text) for text in near):
            continue
        told = find_build_reason(match)
        package, without = _builder(near)
        yield _found(
            line,
            "kernel-build",
            f"{package[0].upper()}{package[1:]} compiles kernels at the start, and that failed: "
            f"{told.cause}.",
            f"{told.remedy}{without}",
            certain=False,
        )


def _no_nvcc(log: ServerLog, line: int) -> Reading:
    near = log.cleaned[max(0, line - _BUILD_LINES) : line]
    package, without = _builder(near)
    return _found(
        line,
        "compiler-missing",
        f"`nvcc` is not installed on this node or not on PATH, and {package} compiles kernels at "
        "the start.",
        "Install the CUDA toolkit of the CUDA that torch was built with (`python -c 'import torch; "
        "print(torch.version.cuda)'`), and set `env.CUDA_HOME` and PATH to it, or use the "
        f"release's image.{without}",
    )


def _builder(lines: Sequence[str]) -> tuple[str, str]:
    """Return the package whose frames stand near, and how to start without its kernels."""
    names = [name for text in lines for name in _IN_PACKAGE.findall(text)]
    known = [(name, package) for name in reversed(names) if (package := find_package(name))]
    if not known:
        return "a package", ""
    name, package = known[0]
    return f"the package {name}", f" To start without its kernels: {package.remedy}"


def _cann_operators(log: ServerLog) -> Iterator[Reading]:
    """Read why CANN's compiler refused an operator: its own error stands below the report."""
    for line, match in log.errors.find(_FAILED_OPERATOR):
        near = log.cleaned[line + 1 : line + _OPERATOR_LINES]
        said = [found[1] for text in near if (found := _OPERATOR_ERROR.search(text))]
        said += [found[1] for text in near if (found := _LAST_EXCEPTION.match(text))]
        if not said:
            continue  # the block itself is all there is
        if reading := _module_of_compiler(line, match[1], said):
            yield reading
            continue
        header = _HEADER_OF_CANN.search(said[0])
        remedy = (
            "The compiler's own headers are not found: install the whole CANN toolkit (with its "
            "compiler package), and source its set_env.sh in the server's environment"
            if header
            else "Compare the CANN release with the one that this torch_npu and vllm-ascend need, "
            "and try `python -c 'import te, tbe'` with set_env.sh sourced"
        )
        yield _found(
            line,
            "op-compile",
            f"CANN's compiler could not compile the operator {match[1]}: {shorten(said[0], 240)}.",
            f"{remedy}; or use the release's image. If the operator refuses this model's types or "
            "sizes, use another release of vllm-ascend, or switch off the feature that calls it.",
            certain=header is not None,
        )


def _module_of_compiler(line: int, operator: str, said: Sequence[str]) -> Reading | None:
    """Read that CANN's compiler, which is Python, does not find a module."""
    found = next((found for text in said if (found := _MISSING_MODULE.search(text))), None)
    if found is None:
        return None
    name = found[1].partition(".")[0]
    remedy = (
        "Source the set_env.sh of the CANN toolkit in the server's environment before `ray start`: "
        "it adds the compiler's own modules to PYTHONPATH"
        if name in _MODULES_OF_CANN
        else f"`pip install {pip_name(name)}` with the Python that runs the server, on every node. "
        f"The compiler also needs {_NEEDED_BY_CANN}"
    )
    return _found(
        line,
        "cann-compiler-module",
        f"CANN's compiler, which runs in the server's Python, does not find the module `{name}` "
        f"there; the operator {operator} was the first that it had to compile.",
        f"{remedy}; or use the release's image.",
    )


def _failed_compilations(log: ServerLog) -> Iterator[Reading]:
    for line, match in log.errors.find(_TRITON):
        yield _triton(log, line, match[0])
    for line, match in log.errors.find(_TRACED):
        yield _traced(line, match[1])
    for line, match in log.errors.find(_INDUCTOR):
        if reading := _known(line, "compile-failed", _said(log, line, match)):
            yield reading
            continue
        yield _found(
            line,
            "compile-failed",
            f"torch.compile failed: {shorten(_said(log, line, match), 240)}.",
            "`args.enforce-eager: true` starts without compilation and graphs. Clear the cache of "
            "an earlier release (~/.cache/vllm/torch_compile_cache), or use the release's image.",
            certain=False,
        )


def _traced(line: int, call: str) -> Reading:
    custom = call.startswith(("_C", "vllm.", "_C_ascend", "torch.ops", "npu"))
    why = (
        " It is a compiled operator without a description for the compiler: the extension was "
        "built for another torch, or this release does not compile with it."
        if custom
        else ""
    )
    return _found(
        line,
        "compile-failed",
        f"torch.compile cannot trace the call of `{call}` in the model.{why}",
        "`args.enforce-eager: true` starts without compilation and graphs; or leave the operator "
        'out of it (`args.compilation-config: {custom_ops: ["none"]}`). Use vLLM, vllm-ascend and '
        "torch of one release (its image), or a newer one.",
        certain=False,
    )


def _triton(log: ServerLog, line: int, said: str) -> Reading:
    first = max(0, line - _COMPILER_LINES)
    near = "\n".join(log.cleaned[first : line + _COMPILER_LINES])
    if target := _NO_TARGET.search(near):
        return _found(
            line,
            "triton-compile",
            f"The installed compiler of Triton kernels does not know this NPU ({target[1]}): "
            "triton-ascend supports only some generations.",
            f"Use a vllm-ascend release or image for {target[1]} (310P: one whose path does "
            "without Triton), or a newer triton-ascend and CANN that list it.",
        )
    if reading := _known(line, "triton-compile", near):
        return reading
    error = _COMPILER_ERROR.search(near)
    detail = shorten(error[1] if error else said, 200)
    if too_large := _TOO_LARGE.search(near):
        return _found(
            line,
            "triton-compile",
            "A Triton kernel needs more on-chip memory than a core of this NPU has "
            f"({shorten(too_large[1], 200)}): "
            "its block or tile is too large for this model's sizes.",
            "Use a newer release of triton-ascend and vllm-ascend; smaller tiles need a smaller "
            "step: lower `args.max-num-batched-tokens`, or switch off the feature whose kernel the "
            "traceback names (`args.enforce-eager: true` if it is a compiled graph).",
        )
    return _found(
        line,
        "triton-compile",
        f"Triton could not compile a kernel for this device ({detail}): triton-ascend and CANN's "
        "BiSheng compiler do not fit this vllm-ascend, or the kernel does not support this model "
        "or NPU generation.",
        "Install the triton-ascend and CANN releases that this vllm-ascend names (`pip list | "
        "grep -i triton`; plain `triton` must not be installed beside triton-ascend), or use "
        "the release's image or a newer one. If a smaller step starts "
        "(`args.max-num-batched-tokens`), the kernel is too large for it.",
        certain=False,
    )


def _known(line: int, id_: str, said: str) -> Reading | None:
    """Read a failed compilation whose words say why."""
    known = find_compile_reason(said)
    if known is None:
        return None
    words = [each for each in said.splitlines() if re.search(known.words, each)]
    telling = next((each for each in words if _TELLING.search(each)), (words or [said])[0])
    return _found(
        line,
        id_,
        f"A compilation failed because {known.cause}: {shorten(telling, 240)}.",
        known.remedy,
        certain=False,
    )


def _cann_compiler(log: ServerLog) -> Iterator[Reading]:
    for line, match in log.errors.find(_CANN_COMPILER):
        near = "\n".join(log.cleaned[max(0, line - 1) : line + _CANN_LINES])
        if not (match[1] or _CODE_5000.search(near)):
            continue
        if soc := _SOC_VERSION.search(near):
            yield _unknown_soc(line, soc[1] or soc[2])
            continue
        if match[2]:
            yield _broken_module(line, match[1], match[2])
            continue
        module = f": the Python module `{match[1]}` cannot be imported" if match[1] else ""
        yield _found(
            line,
            "cann-compiler-init",
            f"CANN's operator compiler cannot be initialised{module} ({shorten(match[0], 60)}). "
            "Python packages that it needs are missing, CANN's set_env.sh was not sourced, or "
            "CANN, driver and torch_npu do not fit each other.",
            "`source /usr/local/Ascend/ascend-toolkit/set_env.sh` before `ray start` and try "
            "`python -c 'import te, tbe'` there; `pip install attrs cffi decorator numpy pathlib2 "
            "protobuf psutil pyyaml scipy sympy` are the Python packages it needs; compare the "
            "CANN release with the one that this torch_npu names.",
            certain=False,
        )


def _broken_module(line: int, error: str, said: str) -> Reading:
    numpy = re.search(r"np\.\w|[Nn]um[Pp]y", said) is not None
    missing = re.search(r"[Nn]o module named ['\"]?([\w.]{1,60})", said)
    if numpy:
        remedy = "Install a NumPy that this CANN takes (`pip install 'numpy<2'`)"
    elif missing:
        remedy = f"Install `{missing[1]}` into the Python of the server"
    else:
        remedy = "Install the release of that package that this CANN takes"
    return _found(
        line,
        "cann-compiler-init",
        "A Python module of CANN's operator compiler cannot be imported: "
        f"{error}: {shorten(said, 200)}.",
        f"{remedy}; CANN's manual lists the Python packages that it needs (attrs, cffi, decorator, "
        "numpy, psutil, pyyaml, scipy, sympy). Source its set_env.sh before `ray start`, or use "
        "the release's image.",
    )


def _unknown_soc(line: int, version: str) -> Reading:
    return _found(
        line,
        "soc-version-unknown",
        f"CANN cannot read its platform data for this NPU (SocVersion {version}): the installed "
        "CANN or its operator packages are of another release or for another NPU generation, or "
        "the process may not read them.",
        f"Install the CANN release and the operator packages for {version} (`ls "
        "$ASCEND_HOME_PATH/*/data/platform_config`) and source set_env.sh, or use the release's "
        "image for this NPU generation; the plog of the process names the file.",
        certain=False,
    )


def _said(log: ServerLog, line: int, match: re.Match[str]) -> str:
    """Return what the compiler's exception says: on the next line when it ends with "raised:"."""
    said = match[1] or match[0]
    following = log.cleaned[line + 1].strip() if line + 1 < len(log.cleaned) else ""
    return f"{said} {following}" if said.rstrip().endswith("raised:") else said


def _found(line: int, id_: str, cause: str, remedy: str, *, certain: bool = True) -> Reading:
    return Reading(
        reason(id_, cause, remedy, "compiler's message", "deterministic"), line, certain=certain
    )
