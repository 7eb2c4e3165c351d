"""Builds from source, Triton on NPUs, and the releases that belong together."""

from __future__ import annotations

import pytest

from raylaunch.supervise.diagnosis.root_cause import diagnose_text
from raylaunch.supervise.diagnosis.rules.tables.release_sets import find_set, name_set

_BUILDS = {
    "CMake Error at CMakeLists.txt:3 (project):\n  No CMAKE_C_COMPILER could be found.": "gcc",
    "-- Configuring incomplete, errors occurred!\n  CMake 3.26 or higher is required.  You are "
    "running version 3.22.1": "cmake>=3.26",
    "CMake Error at CMakeLists.txt:25 (message):\n  Expected PyTorch version 2.8.0, but found "
    "2.9.0+cpu": "torch 2.8.0",
    "CMake Error: ascendc_kernel_cmake does not exist, please check whether the cann package is "
    "installed.": "set_env.sh",
    '  File "/src/setup.py", line 144, in <module>\nRuntimeError: Could not determine chip type '
    "automatically via 'npu-smi'. This can happen in a CPU-only environment.": "SOC_VERSION",
    "gmake[3]: *** No rule to make target '/tmp/pip-build-env-ab12/overlay/lib/python3.10/"
    "site-packages/torch_npu/lib/libtorch_npu.so', needed by 'x.so'.  Stop.": "isolation",
    "/w/csrc/mla.cpp:9:10: fatal error: 'kernel_operator.h' file not found": "CANN toolkit",
    "/w/csrc/a.cpp:9:10: fatal error: acl/acl_rt.h: No such file or directory": "set_env.sh",
    "[ 50%] Building CXX\n/a/b.h:24:10: fatal error: 'cmath' file not found": "CPLUS_INCLUDE_PATH",
    "[ 50%] Building CXX\nc++: fatal error: Killed signal terminated program cc1plus": "MAX_JOBS",
    "[ 90%] Linking\n/usr/bin/ld: cannot find -lascendcl: No such file": "set_env.sh",
    "[ 9%] Building\n/w/csrc/a.cpp:3:1: error: 'aclrtMemcpyBatch' was not declared in this "
    "scope": "CANN that this release",
    "Building wheel for vllm-ascend\nLookupError: setuptools-scm was unable to detect version for "
    "/build/src.": "PRETEND_VERSION",
    "/src/setup.py\nCMake Error: csrc/third_party/catlass/include does not contain a "
    "CMakeLists.txt file": "submodule",
}


@pytest.mark.parametrize("log", _BUILDS)
def test_a_build_tells_what_it_lacks(log: str) -> None:
    found = diagnose_text(log)

    assert found is not None
    assert found.id == "build-failed"
    assert _BUILDS[log] in found.remedy


@pytest.mark.parametrize(
    "line",
    [
        "ImportError: cannot import name 'ir' from 'triton._C.libtriton_x' (torch_npu)",
        "AttributeError: module 'triton.language' has no attribute 'constexpr_function' (npu)",
        "RuntimeError: Triton op 'insert_slice' cannot be resolved because HAS_TRITON is False",
        "_chunk_kernel_npu[(num_cores,)](\nTypeError: 'function' object is not subscriptable",
    ],
)
def test_on_an_npu_only_triton_ascend_may_be_installed(line: str) -> None:
    found = diagnose_text(line)

    assert found is not None
    assert found.id == "triton-wrong"
    assert "pip uninstall -y triton triton-ascend" in found.remedy


def test_a_placeholder_is_no_triton_without_a_launch() -> None:
    found = diagnose_text("TypeError: 'function' object is not subscriptable")

    assert found is None or found.id != "triton-wrong"


@pytest.mark.parametrize(
    ("line", "cann"),
    [
        ("Initializing a V1 LLM engine (v0.11.0) with config: model='/m', device=npu", "8.3.RC2"),
        ("vLLM API server version 0.13.0\nPlatform plugin ascend is activated", "8.5.0"),
        ("vllm-ascend 0.9.2rc1 depends on torch==2.5.1", "8.1.RC1"),
        ("image quay.io/ascend/vllm-ascend:v0.18.0rc1", "8.5.1"),
    ],
)
def test_a_log_names_the_releases_that_belong_together(line: str, cann: str) -> None:
    found = find_set(line.splitlines())

    assert found is not None
    assert found.cann == cann
    assert f"CANN {cann}" in name_set("versions-differ", line.splitlines())
    assert name_set("npu-oom", line.splitlines()) == ""


def test_a_log_of_a_gpu_names_no_set() -> None:
    assert find_set(["vLLM API server version 0.13.0", "Automatically detected cuda"]) is None


@pytest.mark.parametrize(
    ("line", "id_", "word"),
    [
        ("'_OpNamespace' '_moe_C' object has no attribute 'topk_softmax'", "gpu-op-missing", "_C"),
        ("'_OpNamespace' 'atb' object has no attribute 'paged_attn'", "npu-op-missing", "NNAL"),
        ("'_OpNamespace' '_C_ascend' object has no attribute 'x'", "custom-op-missing", "build it"),
        ("module 'torch_npu' has no attribute 'npu_moe_x'", "versions-differ", "torch_npu"),
        ("module 'torch_npu.npu' has no attribute 'graph_x'", "versions-differ", "torch_npu"),
    ],
)
def test_a_missing_operator_names_the_package_it_is_of(line: str, id_: str, word: str) -> None:
    found = diagnose_text(f"AttributeError: {line}")

    assert found is not None
    assert found.id == id_
    assert word in found.remedy


def test_a_symbol_tells_its_abi() -> None:
    found = diagnose_text("got undefined symbol: _ZN3atb7ContextC1ERKSs")

    assert found is not None
    assert "cxx_abi_0" in found.cause
    assert "NNAL" in found.remedy


def test_the_import_below_says_why_the_backend_was_not_loaded() -> None:
    found = diagnose_text(
        "ImportError: libascend_hal.so: cannot open shared object file: No such file or directory\n"
        "RuntimeError: Failed to load the backend extension: torch_npu. You can disable it."
    )

    assert found is not None
    assert "libascend_hal.so" in found.cause


def test_pip_tells_the_python_it_refuses() -> None:
    found = diagnose_text(
        "ERROR: Package 'vllm-ascend' requires a different Python: 3.8.10 not in '>=3.9'"
    )

    assert found is not None
    assert "3.8.10" in found.cause


@pytest.mark.parametrize(
    ("log", "word"),
    [
        ("error: externally-managed-environment", "venv"),
        (
            (
                "ERROR: vllm_ascend-0.9-cp39-cp39-linux_x86_64.whl is not a supported wheel on "
                "this platform."
            ),
            "python -V",
        ),
        ("pip._vendor.urllib3.exceptions.ProtocolError: Connection broken", "mirror"),
        ("ERROR: No matching distribution found for triton-ascend==3.2.2", "Huawei"),
        (
            (
                "Because torch-npu==2.9.0 depends on torch==2.9.0+cpu and there is no version of "
                "torch==2.9.0+cpu, we can conclude"
            ),
            "whl/cpu",
        ),
        ("ImportError: libc.so.6: version `GLIBC_2.38' not found (required by /x/_C.so)", "image"),
        ("ValueError: Invalid vllm version 0.1.dev1 found. A dev version is installed", "X.Y.Z"),
        ("AttributeError: module 'xgrammar' has no attribute 'X'", "pip show xgrammar"),
    ],
)
def test_an_installation_that_is_refused_says_what_to_do(log: str, word: str) -> None:
    found = diagnose_text(log)

    assert found is not None
    assert word in found.remedy
