"""Rules for classes of messages: other words and values of the same class are read too."""

from __future__ import annotations

import pytest

from raylaunch.supervise.diagnosis.root_cause import Diagnosis, diagnose_text


def read(log: str) -> Diagnosis:
    found = diagnose_text(log)
    assert found is not None, log
    return found


@pytest.mark.parametrize(
    ("message", "cause", "remedy"),
    [
        ("RuntimeError: CUDA error: invalid device ordinal", "device number", "VISIBLE_DEVICES"),
        ("torch.AcceleratorError: HIP error: invalid device ordinal", "device number", "parallel."),
        (
            "RuntimeError: CUDA error: no kernel image is available for execution on the device",
            "built for other GPU models",
            "compute capability",
        ),
        (
            "RuntimeError: CUDA error: CUDA driver version is insufficient for CUDA runtime",
            "older than the CUDA",
            "driver",
        ),
        (
            "RuntimeError: CUDA error: peer access is not supported between these two devices",
            "each other's memory",
            "custom-all-reduce",
        ),
        ("RuntimeError: CUDA error: device-side assert triggered", "kernel failed", "eager"),
    ],
)
def test_a_message_of_the_devices_runtime_has_its_own_meaning(
    message: str, cause: str, remedy: str
) -> None:
    found = read(f"(Worker_TP1 pid=7) ERROR 10-15 16:32:16 [multiproc_executor.py:822] {message}")
    assert cause in found.cause
    assert remedy in found.remedy
    assert not found.certain


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://huggingface.co/api/models/org/some-model.v2/revision/main", "org/some-model.v2"),
        ("https://hf-mirror.com/org/model/resolve/main/config.json.", "org/model"),
        ("https://huggingface.co/api/models/gpt9/tree/main?recursive=True", "gpt9"),
        ("https://www.modelscope.cn/api/v1/models/a/b/revisions?EndTime=17", "a/b"),
    ],
)
def test_a_hub_without_the_model_names_the_repository(url: str, name: str) -> None:
    found = read(
        f"huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error. (Request ID: 1)\n\n"
        f"Repository Not Found for url: {url}\n"
    )
    assert found.id == "hub-no-such-model"
    assert f"`{name}`" in found.cause


@pytest.mark.parametrize(
    "message",
    [
        (
            "huggingface_hub.errors.OfflineModeIsEnabled: Cannot reach "
            "https://huggingface.co/api/models/org/m: offline mode is enabled. To disable it, please "
            "unset the `HF_HUB_OFFLINE` environment variable."
        ),
        (
            "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached "
            "snapshot folder for the specified revision on the local disk and outgoing traffic has "
            "been disabled. To enable repo look-ups and downloads online, pass "
            "'local_files_only=False' as input."
        ),
    ],
)
def test_offline_mode_is_told_from_a_hub_that_cannot_be_reached(message: str) -> None:
    found = read(message)
    assert found.id == "hub-offline"
    assert "model.path" in found.remedy


@pytest.mark.parametrize(
    ("lines", "port", "option"),
    [
        (
            (
                '  File "/x/site-packages/vllm/distributed/kv_transfer/kv_connector/v1/nixl_connector'
                '.py", line 9, in _nixl_handshake_listener\n'
                "zmq.error.ZMQError: Address already in use (addr='tcp://10.0.0.7:5600')"
            ),
            "5600",
            "VLLM_NIXL_SIDE_CHANNEL_PORT",
        ),
        (
            (
                '  File "/x/site-packages/vllm/distributed/kv_events.py", line 9, in _socket_setup\n'
                "zmq.error.ZMQError: Address already in use (addr='tcp://*:5557')"
            ),
            "5557",
            "kv-events-config",
        ),
        (
            (
                '  File "/x/site-packages/torch/distributed/rendezvous.py", line 9, in _create_c10d\n'
                "    return TCPStore(\n"
                "RuntimeError: The server socket has failed to listen on any local network address. "
                "port: 45123, useIpv6: false, code: -98, name: EADDRINUSE, message: address already "
                "in use"
            ),
            "45123",
            "master-port",
        ),
        (
            (
                '  File "/x/site-packages/vllm/distributed/device_communicators/shm_broadcast.py", '
                "line 9, in __init__\n"
                "zmq.error.ZMQError: Address already in use (addr='tcp://10.0.0.7:41233')"
            ),
            "41233",
            "VLLM_PORT",
        ),
        (
            (
                '  File "/x/site-packages/vllm/v1/engine/utils.py", line 9, in '
                "launch_core_engines\n"
                "zmq.error.ZMQError: Address already in use (addr='tcp://10.0.0.7:13345')"
            ),
            "13345",
            "network.rpc_port",
        ),
    ],
)
def test_a_port_in_use_is_that_of_the_part_which_asked(lines: str, port: str, option: str) -> None:
    found = read(f"Traceback (most recent call last):\n{lines}")
    assert found.id == "port-in-use"
    assert port in found.cause
    assert option in found.remedy


@pytest.mark.parametrize(("came", "expected"), [(1, 2), (3, 16), (7, 8)])
def test_a_rendezvous_counts_who_came(came: int, expected: int) -> None:
    found = read(
        "torch.distributed.DistStoreError: Timed out after 601 seconds waiting for clients. "
        f"{came}/{expected} clients joined."
    )
    assert f"{came} of {expected}" in found.cause
    assert not found.certain


@pytest.mark.parametrize(
    ("frame", "message", "option"),
    [
        (
            "vllm/distributed/kv_transfer/kv_connector/factory.py",
            "ValueError: Unsupported connector type: FancyConnector",
            "kv-transfer-config",
        ),
        (
            "vllm/model_executor/model_loader/weight_utils.py",
            "RuntimeError: The layout of this thing is not what we want",
            "load-format",
        ),
        (
            "vllm/v1/attention/backends/flex_attention.py",
            "NotImplementedError: We do not do this for such heads yet",
            "attention-backend",
        ),
        (
            "flashinfer/decode.py",
            "RuntimeError: something strange in the plan",
            "VLLM_ATTENTION_BACKEND",
        ),
        (
            "opentelemetry/sdk/trace/export.py",
            "ValueError: strange exporter",
            "otlp-traces-endpoint",
        ),
    ],
)
def test_a_refusal_without_an_option_names_those_of_its_place(
    frame: str, message: str, option: str
) -> None:
    found = read(
        "Traceback (most recent call last):\n"
        f'  File "/usr/lib/python3.12/site-packages/{frame}", line 47, in work\n'
        f"    raise\n{message}"
    )
    assert option in found.remedy


@pytest.mark.parametrize(
    ("message", "variable"),
    [
        ("AssertionError: The env var, RAYX_HOOK_VAR, is not permitted here", "RAYX_HOOK_VAR"),
        ("ValueError: Environment variable `FOO_BAR_MODE` must be set to 1 or 2", "FOO_BAR_MODE"),
        ("RuntimeError: this is not supported, please set OMP_PROC_MODE=1 first", "OMP_PROC_MODE"),
    ],
)
def test_a_variable_that_a_message_names_is_in_the_remedy(message: str, variable: str) -> None:
    found = read(
        "Traceback (most recent call last):\n"
        '  File "/usr/lib/python3.12/site-packages/vllm/envs_check.py", line 4, in check\n'
        f"    raise\n{message}"
    )
    assert f"env.{variable}" in found.remedy


@pytest.mark.parametrize(
    ("warning", "cause", "remedy"),
    [
        (
            "socketPollConnect: Connect to 10.1.2.3<4001> returned 111(Connection refused) errno 115",
            "10.1.2.3",
            "network.interface",
        ),
        ("Net : Connection from remote peer 10.1.2.9<4711> closed", "10.1.2.9", "log"),
        ("Bootstrap : no socket interface found", "no network interface", "ip -br addr"),
        (
            "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 5000",
            "same GPU",
            "device of its own",
        ),
        (
            "NET/IB : Got completion from peer 10.0.0.2<39111> with error 12, opcode 0, len 0",
            "10.0.0.2",
            "ibv_devinfo",
        ),
        ("Message truncated : received 1024 bytes instead of 256", "same program", "parallel"),
    ],
)
def test_a_warning_of_nccl_says_more_than_its_exception(
    warning: str, cause: str, remedy: str
) -> None:
    found = read(
        f"n1:12:40 [0] misc/socket.cc:533 NCCL WARN {warning}\n"
        "torch.distributed.DistBackendError: NCCL error in: x.cpp:1275, unhandled system error"
    )
    assert cause in found.cause
    assert remedy in found.remedy
    assert not found.certain


def test_a_plug_in_that_nccl_does_not_need_is_no_missing_library() -> None:
    line = "n1:12:40 [0] NCCL INFO NET/Plugin: libnccl-net.so: cannot open shared object file"
    assert diagnose_text(f"{line}: No such file or directory") is None


@pytest.mark.parametrize(
    ("statement", "option"),
    [
        (
            "AssertionError: Remote block size 64 differs from the local block size 128",
            "args.block-size",
        ),
        ("RuntimeError: remote tp_size 8 is not a multiple of the local one", "parallel.tensor"),
        ("ValueError: remote agent has another kv cache layout: NHD", "VLLM_KV_CACHE_LAYOUT"),
        ("AssertionError: handshake: version hash of the remote is another one", "release"),
    ],
)
def test_servers_that_do_not_fit_each_other_are_told_what_must_be_the_same(
    statement: str, option: str
) -> None:
    found = read(
        "(Worker_TP0 pid=8) ERROR 06-11 03:02:10 [worker.py:7] NIXL transfer failure: x | Context\n"
        '(Worker_TP0 pid=8) ERROR 06-11 03:02:10 [worker.py:7]   File "/v/site-packages/vllm/'
        'distributed/kv_transfer/kv_connector/v1/any_connector.py", line 4, in _validate_remote\n'
        f"(Worker_TP0 pid=8) ERROR 06-11 03:02:10 [worker.py:7] {statement}"
    )
    assert found.id == "kv-partners-differ"
    assert option in found.remedy


@pytest.mark.parametrize(
    ("line", "cause", "remedy"),
    [
        ("ERROR: Worker proc pid 77 died with exit code -9", "SIGKILL", "dmesg"),
        ("ERROR: process 71 exited with exitcode: 139", "SIGSEGV", "eager"),
        ("ERROR: rank 3 (local) crashed, exit status 135", "SIGBUS", "/dev/shm"),
        ("ERROR: child process was terminated by signal 6", "SIGABRT", "what()"),
    ],
)
def test_the_exit_of_a_process_is_read_by_its_number(line: str, cause: str, remedy: str) -> None:
    found = read(line)
    assert cause in found.cause
    assert remedy in found.remedy
    assert not found.certain


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("ERROR 10-01 09:52:48 client.py:244] TimeoutError('No heartbeat received')", "heartbeat"),
        ('ERROR 10-01 09:52:48 x.py:4] ValueError("type fp9 is not supported here")', "fp9"),
    ],
)
def test_an_exception_that_was_logged_by_its_repr_is_read(line: str, word: str) -> None:
    found = read(line)
    assert word in found.cause
    assert found.id not in ("unexplained-errors", "unknown")


def test_a_folder_of_torch_is_no_feature_of_vllm_ascend() -> None:
    found = read(
        "Traceback (most recent call last):\n"
        '  File "/v/site-packages/torch/_inductor/scheduler.py", line 4, in create\n'
        "RuntimeError: this thing does not support that thing"
    )
    assert "ascend" not in f"{found.cause} {found.remedy}".lower()


@pytest.mark.parametrize(
    ("statement", "key", "option"),
    [
        ('port = self.kv_connector_extra_config["proxy_port"]', "proxy_port", "kv-transfer-config"),
        ('factor = rope_scaling["short_factor"]', "short_factor", "config.json"),
        ('bits = hf_quant_config["num_bits"]', "num_bits", "model.path"),
        ('size = hf_config["d_state"]', "d_state", "hf-overrides"),
        ('flag = additional_config["torchair_mode"]', "torchair_mode", "additional-config"),
        ('rank = os.environ["MY_RANK"]', "MY_RANK", "env.MY_RANK"),
    ],
)
def test_a_missing_key_is_read_by_what_it_was_to_be_read_from(
    statement: str, key: str, option: str
) -> None:
    found = read(
        "Traceback (most recent call last):\n"
        '  File "/v/site-packages/vllm/some/place.py", line 4, in work\n'
        f"    {statement}\nKeyError: '{key}'"
    )
    assert found.id == "key-missing"
    assert key in found.cause
    assert option in found.remedy
    assert not found.certain


@pytest.mark.parametrize(
    ("line", "id_", "remedy"),
    [
        (
            (
                "ray.exceptions.WorkerCrashedError: The worker died unexpectedly while executing this "
                "task."
            ),
            "ray-actor-died",
            "dmesg",
        ),
        (
            (
                "ray.exceptions.ActorPlacementGroupRemoved: The actor died because its placement group "
                "was removed."
            ),
            "ray-group-removed",
            "placement-groups",
        ),
        ("ray.exceptions.OutOfDiskError: Local disk is full", "disk-full", "df -h"),
        (
            "RuntimeError: b'GCS has started but no raylets have registered yet.'",
            "ray-no-raylet",
            "ray start --head",
        ),
    ],
)
def test_an_exception_of_ray_is_read_by_its_class(line: str, id_: str, remedy: str) -> None:
    found = read(line)
    assert found.id == id_
    assert remedy in found.remedy


def test_a_check_of_a_kernel_is_quoted_and_an_index_beyond_its_table_explained() -> None:
    found = read(
        "x.cu:9: foo: block: [1,0,0], thread: [3,0,0] Assertion `srcIndex < srcSelectDimSize` "
        "failed.\nRuntimeError: CUDA error: device-side assert triggered"
    )
    assert "srcIndex < srcSelectDimSize" in found.cause
    assert "args.max-model-len" in found.remedy


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("ambiguous option: --max could match --max-num-seqs, --max-model-len", "max-num-seqs"),
        ("the following arguments are required: model_tag", "model_tag"),
    ],
)
def test_what_argparse_says_of_a_whole_command_is_read(said: str, words: str) -> None:
    found = read(f"vllm serve: error: {said}")
    assert found.id == "bad-flag"
    assert words in found.cause


@pytest.mark.parametrize(
    ("line", "word", "remedy"),
    [
        (
            "CUDA error (/src/vllm-flash-attn/flash_api.cpp:697): invalid configuration argument",
            "flash_api.cpp",
            "attention-backend",
        ),
        (
            "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(h)`",
            "CUBLAS_STATUS",
            "gpu-memory-utilization",
        ),
        ("RuntimeError: Triton Error [HIP]: device kernel image is invalid", "image", "release"),
        ("RuntimeError: HIP error: no kernel image is available", "built for other", "wheels"),
    ],
)
def test_messages_of_kernels_and_of_libraries_of_the_device_are_read(
    line: str, word: str, remedy: str
) -> None:
    found = read(line)
    assert word in found.cause
    assert remedy in found.remedy


@pytest.mark.parametrize(
    "message",
    [
        "Operation not supported (addr='ipc:///share/tmp/1f_socket')",
        "Permission denied (addr='ipc:///data/x/2e_socket')",
        "No such file or directory (addr='ipc:///gone/3c_socket')",
    ],
)
def test_a_local_socket_that_cannot_be_made_names_the_folder_to_set(message: str) -> None:
    found = read(
        "Traceback (most recent call last):\n"
        '  File "zmq/backend/cython/_zmq.py", line 190, in zmq.backend.cython._zmq._check_rc\n'
        f"zmq.error.ZMQError: {message}"
    )
    assert "VLLM_RPC_BASE_PATH" in found.remedy
    assert "ipc://" in found.cause


def test_a_package_of_a_checkout_is_known_by_its_folder() -> None:
    found = read(
        "Traceback (most recent call last):\n"
        '  File "/home/me/LMCache/lmcache/v1/compute/models/utils.py", line 38, in get_model\n'
        "    raise ValueError(x)\n"
        "ValueError: vllm model for some-instance not found."
    )
    assert found.cause.startswith("lmcache refused")
    assert "LMCACHE_CONFIG_FILE" in found.remedy


@pytest.mark.parametrize(
    ("place", "statement", "attribute", "name", "option"),
    [
        (
            "vllm/some/loader.py",
            "x = self.speculative_config.method",
            "method",
            "self.speculative_config",
            "features.speculative",
        ),
        (
            "vllm/distributed/kv_transfer/base.py",
            "self.engine.start()",
            "start",
            "self.engine",
            "kv-transfer-config",
        ),
        (
            "vllm/model_executor/models/qwen9.py",
            "s = self.visual.spatial",
            "spatial",
            "self.visual",
            "qwen9",
        ),
    ],
)
def test_a_value_that_is_none_is_named_with_what_sets_it(
    place: str, statement: str, attribute: str, name: str, option: str
) -> None:
    found = read(
        "Traceback (most recent call last):\n"
        f'  File "/v/site-packages/{place}", line 4, in work\n'
        f"    {statement}\n"
        f"AttributeError: 'NoneType' object has no attribute '{attribute}'"
    )
    assert found.id == "value-none"
    assert f"`{name}`" in found.cause
    assert option in f"{found.cause} {found.remedy}"


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (
            (
                "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xbb in position 0: invalid start "
                "byte"
            ),
            "another form",
        ),
        ("ZeroDivisionError: integer division or modulo by zero", "parallel.tensor"),
        ("AttributeError: Can't get attribute 'Foo' on <module 'bar'>", "same releases"),
        ("ValueError: too many values to unpack (expected 2)", "do not belong together"),
        ("TimeoutError: No heartbeat received from MQLLMEngine", "VLLM_RPC_TIMEOUT"),
    ],
)
def test_an_exception_that_nothing_knows_is_read_by_its_kind(line: str, word: str) -> None:
    found = read(
        "Traceback (most recent call last):\n"
        '  File "/v/site-packages/vllm/some/place.py", line 4, in work\n'
        f"    y = work(x)\n{line}"
    )
    assert word in f"{found.cause} {found.remedy}"
    assert not found.certain


@pytest.mark.parametrize("kind", ["Entry Not Found", "Revision Not Found"])
def test_a_missing_file_or_revision_is_no_missing_repository(kind: str) -> None:
    found = diagnose_text(
        f"huggingface_hub.errors.HfHubHTTPError: 404 Client Error. (Request ID: 1)\n\n{kind} for "
        "url: https://huggingface.co/org/model/resolve/main/tokenizer.model.\n"
    )
    assert found is None or found.id != "hub-no-such-model"


@pytest.mark.parametrize(
    ("message", "setting", "left_out"),
    [
        (
            (
                "ValueError: Please specify kv_role when kv_connector is set, supported roles are "
                "('kv_producer', 'kv_both')"
            ),
            "`kv_role` in `args.kv-transfer-config`",
            "",
        ),
        (
            (
                "ValueError: --data-parallel-address is required when --data-parallel-size-local "
                "is smaller than data-parallel-size"
            ),
            "`args.data-parallel-address`",
            "`parallel.data_local`",
        ),
        (
            "AssertionError: enable_expert_parallel must be set to True when enable_eplb is set",
            "`enable_expert_parallel` in `parallel.expert` to True",
            "`args.enable-eplb`",
        ),
        (
            "ValueError: async_scheduling requires `distributed_executor_backend` to be set",
            "`args.distributed-executor-backend`",
            "`args.async-scheduling`",
        ),
    ],
)
def test_a_setting_that_another_one_needs_is_the_remedy(
    message: str, setting: str, left_out: str
) -> None:
    found = read(message)
    assert found.id == "setting-needed"
    assert found.remedy.startswith(f"Set {setting}")
    assert left_out in found.remedy


@pytest.mark.parametrize("module", ["decorator", "sympy", "absl"])
def test_a_module_that_the_compiler_of_cann_lacks_is_named_before_the_operator(module: str) -> None:
    found = read(
        "E40021: [PID: 1234] 2025-02-25-08:33:16.001.000 Failed to compile Op [Concat1]. (oppath: "
        "[Pre-compile /opt/cann/opp/impl/concat_v2_d.py failed with errormsg/stack:\n"
        f"ModuleNotFoundError: No module named '{module}'\n"
    )
    assert found.id == "cann-compiler-module"
    assert f"`pip install {module}" in found.remedy


def test_the_compiler_of_cann_without_its_own_modules_needs_its_environment() -> None:
    found = read(
        "E40021: [PID: 7] 2025-02-25-08:33:16.001.000 Failed to compile Op [Cast3].\n"
        "ModuleNotFoundError: No module named 'tbe'\n"
    )
    assert "set_env.sh" in found.remedy
    assert "pip install" not in found.remedy


def test_an_abort_by_torch_npu_is_the_error_of_an_operator() -> None:
    found = read(
        "terminate called after throwing an instance of 'c10::Error'\n"
        "  what():  The Inner error is reported as above. The process exits for this inner error, "
        "and the current working operator name is aclnnMul.\n"
    )
    assert found.id == "acl-async-error"
    assert "aclnnMul" in found.cause
