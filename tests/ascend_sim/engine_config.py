"""The engine configuration that the real vLLM and vllm-ascend make of a server's command line.

Nothing of it is simulated but the device underneath: `vllm serve`'s parser and validation, then
`AsyncEngineArgs.create_engine_config()` under `NPUPlatform`, as a server does before it starts its
engine. One child process per server: a configuration changes the process that makes it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SKIPPED_ENV = ("LD_PRELOAD", "PATH", "LD_LIBRARY_PATH")
"""Too late for a process that runs: the loader reads them at its start."""


@dataclass(frozen=True)
class Answer:
    """What became of a command line: the configuration, or the stage that refused it and why."""

    config: Mapping[str, object]
    stage: str = ""
    error: str = ""
    log: str = ""


def import_vllm() -> None:
    """Import once, in the parent, what every child needs (10 to 20 s)."""
    import transformers  # noqa: F401
    import vllm
    import vllm.engine.arg_utils
    import vllm.entrypoints.openai.api_server
    import vllm.entrypoints.openai.cli_args
    import vllm.transformers_utils.config
    import vllm.v1.executor.abstract  # noqa: F401
    from vllm.model_executor.models import registry
    from vllm.platforms import current_platform

    # vLLM inspects a model class in a new interpreter, to touch no device. Here is none, and each
    # child of ours is a process of its own already; a new one would import all of vLLM again.
    registry._run_in_subprocess = lambda inspect: inspect()
    assert type(current_platform).__module__ == "vllm_ascend.platform"


def create_engine_config(
    argv: Sequence[str], env: Mapping[str, str], unset: Sequence[str], npus: int, board: str
) -> Answer:
    """Make the configuration of one server in a child process.

    Args:
        argv: The whole command line, beginning with "vllm serve".
        env: Variables of the plan.
        unset: Variables that the plan removes.
        npus: NPUs that the server sees.
        board: "A2" or "A3", as vllm-ascend's build says it.
    """
    with tempfile.TemporaryFile() as log, tempfile.TemporaryFile() as answer:
        pid = os.fork()
        if pid == 0:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            try:
                made = _make(argv, env, unset, npus, board)
                answer.write(json.dumps(made).encode())
                answer.flush()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0)  # without the parent's exit handlers
        os.waitpid(pid, 0)
        log.seek(0)
        answer.seek(0)
        text = log.read().decode(errors="replace")
        made = json.loads(answer.read() or b'{"stage": "crash", "error": "the child died"}')
    return Answer(made.get("config", {}), made.get("stage", ""), made.get("error", ""), text)


def _make(
    argv: Sequence[str], env: Mapping[str, str], unset: Sequence[str], npus: int, board: str
) -> dict[str, object]:
    for name in unset:
        os.environ.pop(name, None)
    os.environ.update({name: value for name, value in env.items() if name not in SKIPPED_ENV})
    import torch
    from vllm_ascend import _build_info

    _build_info.__device_type__ = board
    torch.npu.device_count = lambda: npus
    stages = ["parse"]
    try:
        return {"config": _parse_and_configure(argv, stages)}
    except (Exception, SystemExit) as error:  # noqa: BLE001 - any refusal is the answer
        refusal = f"{type(error).__name__}: {error}"
        traceback.print_exc()
        return {"stage": stages[-1], "error": refusal}


def _parse_and_configure(argv: Sequence[str], stages: list[str]) -> dict[str, object]:
    """Do what `vllm serve` does (entrypoints/cli/serve.py of 0.23.0) until the engine starts."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.openai.api_server import validate_api_server_args
    from vllm.entrypoints.openai.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.executor import Executor

    options = make_arg_parser(FlexibleArgumentParser(prog="vllm serve")).parse_args(argv[2:])
    stages.append("validate")
    validate_parsed_serve_args(options)
    if not options.headless:
        validate_api_server_args(options)
    stages.append("config")
    if options.model_tag:
        options.model = options.model_tag
    arguments = AsyncEngineArgs.from_cli_args(options)
    headless = {"headless": True} if options.headless else {}
    config = arguments.create_engine_config(
        usage_context=UsageContext.OPENAI_API_SERVER, **headless
    )
    stages.append("serve")
    if options.headless and arguments.data_parallel_hybrid_lb:
        raise ValueError("hybrid load balancing is not applicable in headless mode")
    parallel = config.parallel_config
    return {
        "worker": parallel.worker_cls,
        "executor": Executor.get_class(config).__name__,
        "tensor": parallel.tensor_parallel_size,
        "data": parallel.data_parallel_size,
        "data_local": parallel.data_parallel_size_local,
        "expert": parallel.enable_expert_parallel,
        "prefill_context": parallel.prefill_context_parallel_size,
        "decode_context": parallel.decode_context_parallel_size,
        "hybrid_lb": parallel.data_parallel_hybrid_lb,
        "external_lb": parallel.data_parallel_external_lb,
        "handshake": f"{parallel.data_parallel_master_ip}:{parallel.data_parallel_rpc_port}",
        "max_model_len": config.model_config.max_model_len,
        "quantization": config.model_config.quantization,
        "max_num_seqs": config.scheduler_config.max_num_seqs,
        "speculative": config.speculative_config and config.speculative_config.method,
    }
