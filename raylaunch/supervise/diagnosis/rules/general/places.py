"""Exceptions by the place that raised them: readers of a model's files, grammars, sockets.

What is written here holds for any message of that place.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from raylaunch.supervise.diagnosis.advice import read_advice
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason, shorten
from raylaunch.supervise.diagnosis.rules.tables.name_owners import find_name_owner
from raylaunch.supervise.diagnosis.signatures import Kind
from raylaunch.supervise.diagnosis.tracebacks import Raised

_GRAMMAR = re.compile(
    r"^(?:xgrammar|outlines|outlines_core|llguidance|lmformatenforcer)/|"
    r"^vllm/(?:v1/)?(?:structured_output|model_executor/guided_decoding)"
)
_KV_LAYOUT = re.compile(r"^vllm/v1/core/(?:kv_cache_utils|single_type_kv_cache)|kv_cache_interface")
_READER = re.compile(
    r"^transformers/(?:tokenization_\w+|processing_\w+|image_processing_\w+|video_processing_\w+|"
    r"feature_extraction_\w+|configuration_utils|modeling_rope_utils|convert_slow_tokenizer|"
    r"models/\w+/(?:tokenization|processing|image_processing|configuration|convert)\w*)\.py$"
)
_MODEL_CODE = re.compile(r"transformers_modules/([\w./-]{1,300}\.py)$")
_NO_MODEL_CODE = re.compile(r"No module named '(transformers_modules\.[\w.-]{1,200})'")
_ADDRESS = re.compile(r"addr='(\w{2,6}://([^'\n]{1,120}?)(?::(\d{1,5}))?)'")
_OWNERS: tuple[tuple[str, str, str], ...] = (
    (
        r"nixl",
        "NIXL's side channel",
        "Set `env.VLLM_NIXL_SIDE_CHANNEL_HOST` on each node to that node's own address.",
    ),
    (
        r"mooncake|kv_transfer|kv_connector",
        "the KV connector",
        "Give each server its own address in `args.kv-transfer-config` (kv_ip, local_hostname).",
    ),
)
_TYPES_OF_A_READER = (
    *("ValueError", "TypeError", "KeyError", "AttributeError", "IndexError", "RuntimeError"),
    *("AssertionError", "UnboundLocalError"),
)
_NOT_FROM_FILES = re.compile(r"Connection|connect|Errno|trust_remote_code|not recognize|PIL|Pillow")


def _in_grammar(raised: Raised) -> Reading | None:
    if not any(_GRAMMAR.match(frame.module_path) for frame in raised.frames[:3]):
        return None
    if raised.type in ("ModuleNotFoundError", "ImportError"):
        return None
    if re.search(r"(?i)tokenizer|vocab", raised.message):
        return _reading(
            raised,
            "grammar-tokenizer",
            "The backend of structured output does not work with this model's tokenizer: "
            f"{shorten(_said(raised), 240)}.",
            "Choose another backend in `args.structured-outputs-config` (`guidance`, `outlines`), "
            "leave out `args.tokenizer-mode` (mistral has a tokenizer of its own), or use a newer "
            "release of vLLM.",
            "deterministic",
        )
    if "incompatible function arguments" in raised.message:
        return _reading(
            raised,
            "call-mismatch",
            "The backend of structured output is called with other types than it takes "
            f"({shorten(_said(raised), 240)}): it and vLLM or vllm-ascend are of releases that do "
            "not fit, or this release has a defect there.",
            "Use a newer release or image of vllm-ascend and vLLM that belong together (it brings "
            "the xgrammar that fits). Until then start with `args.async-scheduling: false`, or "
            "with another backend in `args.structured-outputs-config` (`guidance`, `outlines`).",
            "deterministic",
        )
    return _reading(
        raised,
        "grammar-failed",
        "The JSON schema or grammar of a request (structured output, tool calling) could not be "
        f"compiled or followed: {shorten(_said(raised), 240)}. This release lets that failure "
        "reach the engine.",
        "A restart serves again until the next such request: check the schemas that clients send "
        "(`response_format`, `tools`), try another backend in `args.structured-outputs-config`, "
        "or use a newer release of vLLM, which refuses such a request with status 400.",
        "transient",
    )


def _in_kv_layout(raised: Raised) -> Reading | None:
    frame = raised.innermost
    if frame is None or not _KV_LAYOUT.search(frame.module_path) or not raised.message:
        return None
    if raised.type not in ("NotImplementedError", "AssertionError", "ValueError"):
        return None
    if re.search(r"memory|max seq len|blocks", raised.message):
        return None  # a size, which a signature reads with its numbers
    manager = (
        "A KV connector switches the manager of several kinds of cache off, and this model needs "
        "it: set `args.disable-hybrid-kv-cache-manager: false` (on the command line "
        "`--no-disable-hybrid-kv-cache-manager`), or leave out `args.kv-transfer-config`. "
        if "ybrid KV cache manager is disabled" in raised.message
        else ""
    )
    return _reading(
        raised,
        "kv-layout-unsupported",
        "vLLM cannot lay out one KV cache for all layers of this model (and of its draft model): "
        f"{shorten(_said(raised), 240)}.",
        f"{manager}Start without what adds another kind of layer or cache: `features.speculative`, "
        "`args.kv-cache-dtype`, `args.kv-transfer-config`, `args.block-size`; or use a newer "
        "release of vLLM (and vllm-ascend).",
        "deterministic",
    )


def _in_reader(raised: Raised) -> Reading | None:
    frame = raised.innermost
    if frame is None or not _READER.match(frame.module_path):
        return None
    if raised.type not in _TYPES_OF_A_READER or _NOT_FROM_FILES.search(raised.message):
        return None
    called = _CALLED.match(raised.message)
    if called and find_name_owner(called[1]) not in ("", "transformers"):
        return None  # another package, of another release
    what = next(
        (
            name
            for word, name in _READ_FILES
            if word in f"{frame.module_path} {frame.function} {raised.message}".lower()
        ),
        "the model's files",
    )
    mode = ""
    if "MistralTokenizer" in raised.message:
        mode = (
            " This processor needs the tokenizer of transformers: leave out "
            "`args.tokenizer-mode: mistral`."
        )
    if advice := read_advice(raised.message):
        mode = f"{mode} The message advises: {advice}."
    return _reading(
        raised,
        "model-files-unread",
        f"transformers cannot work with {what} of this model: {shorten(_said(raised), 240)} (in "
        f"{frame.module_path}). The files were written by another release of transformers, are "
        "incomplete or edited, or are of another model.",
        "Install the transformers release in `transformers_version` of config.json (within the "
        "range of this vLLM), download tokenizer*, processor* and config files of the model "
        f"again to `model.path`, and compare them with the hub.{mode}",
    )


_CALLED = re.compile(r"([A-Za-z_][\w.]{1,120})\(\) got an unexpected keyword")
_READ_FILES = (
    ("tokeniz", "the tokenizer files (tokenizer.json, tokenizer_config.json, added tokens)"),
    ("process", "the processor files (preprocessor_config.json, processor_config.json)"),
    ("rope", "`rope_scaling` in config.json"),
    ("config", "config.json"),
)


def _in_model_code(raised: Raised) -> Reading | None:
    if raised.type == "ModuleNotFoundError":
        return _dot_in_folder(raised)
    place = next(
        (found[1] for frame in raised.frames[:2] if (found := _MODEL_CODE.search(frame.path))), ""
    )
    if not place or raised.type not in (*_TYPES_OF_A_READER, "ImportError", "NameError"):
        return None
    return _reading(
        raised,
        "model-code-failed",
        f"The model's own code ({place.rpartition('/')[2]}) does not work with the installed "
        f"packages: {shorten(_said(raised), 240)}. It was written for another release of "
        "transformers.",
        "Install the transformers release that the model card or `transformers_version` in "
        "config.json names, or download the model's *.py files again (a newer revision may fit); "
        "without `args.trust-remote-code` vLLM uses its own code if it knows the architecture.",
    )


def _dot_in_folder(raised: Raised) -> Reading | None:
    found = _NO_MODEL_CODE.search(raised.message)
    if found is None:
        return None
    folder = found[1].rpartition(".")[2]
    paths = " ".join(frame.path for frame in raised.frames)
    cut_off = re.search(rf"/({re.escape(folder)}\.[^/\s]{{1,80}})/", paths)
    whole = cut_off[1] if cut_off else folder if "." in folder or "-" in folder else ""
    if not whole:
        return None
    return _reading(
        raised,
        "model-folder-name",
        f"The name of the model's folder (`{whole}`) has a dot or another sign that Python does "
        "not allow in the name of a module, so the model's own code cannot import its other files.",
        "Rename the folder without dots (`_` instead) or give a link to it as `model.path`, or "
        "use a newer transformers, which writes such names in another way.",
    )


def _cannot_bind(raised: Raised) -> Reading | None:
    found = _ADDRESS.search(raised.message)
    if raised.type != "ZMQError" or found is None:
        return None
    address, host, _ = found.groups()
    if address.startswith("ipc:"):
        return _reading(
            raised,
            "local-socket",
            f"The local socket {address} cannot be made ({raised.message.partition(' (')[0]}): the "
            "file system of its folder takes no sockets (network shares do not), the folder is "
            "missing or not writable, or the name is too long.",
            "Use a folder on a local disk: `env.VLLM_RPC_BASE_PATH: /tmp` and `env.TMPDIR: /tmp`.",
        )
    if "annot assign" in raised.message:
        way = " ".join(frame.module_path for frame in raised.frames)
        owner, how = next(
            ((name, fix) for words, name, fix in _OWNERS if re.search(words, way)),
            ("the server", ""),
        )
        return _reading(
            raised,
            "address-not-local",
            f"{owner[0].upper()}{owner[1:]} is to listen on {address}, an address that this node "
            "or container does not have: it is that of another node, or of another network.",
            f"{how} Check `network.interface`, `network.host` and `args.data-parallel-address` "
            "(the primary's own address); `ip -br addr` on this node shows its addresses.".strip(),
            certain=True,
        )
    if host.count(":") > 1 and not host.startswith("["):
        return _reading(
            raised,
            "address-not-local",
            f"The socket {address} cannot be opened: `{host}` is an IPv6 address without brackets, "
            "and this part of the server writes only IPv4 addresses.",
            "Use IPv4 addresses between the servers: set VLLM_HOST_IP, `network.interface` and the "
            "addresses in `args.kv-transfer-config` (kv_ip) to IPv4, or use a release whose "
            "connector supports IPv6.",
        )
    if "No such device" in raised.message or "nvalid argument" in raised.message:
        return _reading(
            raised,
            "address-not-local",
            f"The socket {address} cannot be opened: `{host}` is neither an address nor an "
            "interface of this node, and ZeroMQ does not resolve the name.",
            f"Use the IP address (127.0.0.1 for localhost), or give `{host}` an IPv4 address in "
            "/etc/hosts; check `network.interface` and `network.host`.",
        )
    return None


_CACHED_CODE = re.compile(
    r"/(torch_compile_cache|torchinductor_[^/]{1,60}|inductor_cache|torch_aot_compile)/"
)

# What compiled code asserts of its inputs: torch/_C/_dynamo/guards (assert_size_stride).
_OTHER_SIZES = re.compile(r"expected size \d{1,9}==\d{1,9}, stride \d")


def _in_cached_code(raised: Raised) -> Reading | None:
    """Read an exception in code that was compiled earlier and taken from a cache."""
    if raised.type not in _TYPES_OF_A_READER or "memory" in raised.message:
        return None
    found = next(
        (match for frame in raised.frames[:3] if (match := _CACHED_CODE.search(frame.path))), None
    )
    split = any(frame.path.startswith("<eval_with_key>") for frame in raised.frames[:3])
    sizes = _OTHER_SIZES.match(raised.message) or (split and "to unpack" in raised.message)
    if found is None and not sizes:
        return None
    cache = found[1] if found else "torch_compile_cache"
    return _reading(
        raised,
        "compile-cache-stale",
        f"Compiled code from a cache ({cache}) does not fit this model with these options: "
        f"{shorten(_said(raised), 200)}. It was compiled by another release or with other options, "
        "or this release compiles them wrongly.",
        "Remove the cache on every node (`rm -rf ~/.cache/vllm/torch_compile_cache "
        "/tmp/torchinductor_*`) and start again, once with `env.VLLM_DISABLE_COMPILE_CACHE: 1`. If "
        "it recurs with an empty cache, `args.enforce-eager: true` starts without compilation; or "
        "use a newer release.",
    )


_PARAMETERS = re.compile(
    r"(?:params|parameters|meta(?:data)?|request|req|msg|message)\w{0,20}"
    r"\[['\"]([\w.-]{2,60})['\"]\]"
)


def _in_transfer_parameters(raised: Raised) -> Reading | None:
    """Read a key that a request or a peer did not send to a KV connector."""
    frame = next((f for f in raised.frames if re.search(_CONNECTORS, f.module_path)), None)
    found = _PARAMETERS.search(raised.code) if raised.type == "KeyError" else None
    if frame is None or found is None or found[1] != raised.message.strip("'\""):
        return None
    connector = frame.path.rpartition("/")[2].removesuffix(".py")
    return _reading(
        raised,
        "kv-parameters-missing",
        f"The KV connector ({connector}) reads `{found[1]}` from what the proxy or the other "
        "server sent with a request, and it is not there: proxy, prefill and decode server do not "
        "use the same connector, or are of different releases.",
        "Use the proxy (router) example that belongs to this connector, of the same release: a "
        "layerwise connector has a layerwise proxy of its own; and name the same `kv_connector` "
        "and the matching `kv_role` in `args.kv-transfer-config` of all servers. A request sent to "
        "a decode server directly, without the proxy, lacks it, too.",
    )


_CONNECTORS = r"kv_transfer|kv_connector|_connector\.py|kv_pool"


def _offload(raised: Raised) -> Reading | None:
    way = " ".join(f"{frame.module_path} {frame.function}" for frame in raised.frames[:4])
    if "offload" not in way or not re.search(r"pinn?ed|pin_memory", _said(raised)):
        return None
    return _reading(
        raised,
        "offload-needs-pinned",
        "Weights that are offloaded to the host must be in pinned memory, and this model's are "
        f"not: {shorten(_said(raised), 160)}. The format of the weights (GGUF, quantised), WSL or "
        "the platform has none, or no more memory may be pinned.",
        "Leave out `args.cpu-offload-gb`, use another format of the weights, or raise `ulimit -l` "
        "(unlimited); raise `parallel.tensor` instead to fit the model.",
    )


def _said(raised: Raised) -> str:
    return f"{raised.type}: {raised.message or raised.code}".rstrip(": .")


def _reading(
    raised: Raised,
    id_: str,
    cause: str,
    remedy: str,
    kind: Kind = "deterministic",
    *,
    certain: bool = False,
) -> Reading:
    told = reason(id_, cause, remedy, "exception by place", kind)
    return Reading(told, raised.line, rank=Rank.CAUSE, certain=certain)


PLACES: tuple[Callable[[Raised], Reading | None], ...] = (
    _in_cached_code,
    _in_grammar,
    _in_kv_layout,
    _in_model_code,
    _in_transfer_parameters,
    _cannot_bind,
    _offload,
    _in_reader,
)
