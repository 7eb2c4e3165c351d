"""Flags of `vllm serve` that another release or another package has, and what stands for them.

A flag that argparse does not know is rarely misspelt: it was renamed, went with the V0 engine, or
belongs to a plug-in. Sources: vLLM's deprecation notes in config/ and engine/arg_utils.py of 0.8 to
0.32; vllm-omni's README.
"""

from __future__ import annotations

import difflib
import re

from raylaunch.plan.known_flags import read_flags

_V0 = "It went with the V0 engine and has no successor: remove it under `args`."
_SPECULATIVE = (
    "It is now a key of one value: `features.speculative` (`--speculative-config`, JSON); remove "
    "it under `args`."
)
_STRUCTURED = (
    "It is now a key of `args.structured-outputs-config` (JSON, `backend`); remove it under `args`."
)
_NEAR = 0.86
_ONE_WORD = (
    'In a list of arguments (`args` of a pod, `command` of compose, subprocess) write "--flag" and '
    '"value" as two elements, or "--flag=value", and in a shell without quotes around both; the '
    "command must be `vllm serve` (its flags come after `serve`)."
)
_ALWAYS = re.compile(
    r"api-key|block-size|disable-log-stats|download-dir|dtype|enforce-eager|host|load-format|"
    r"gpu-memory-utilization|max-(?:model-len|num-batched-tokens|num-seqs)|model|port|"
    r"(?:pipeline|tensor)-parallel-size|quantization|revision|seed|served-model-name|tokenizer|"
    r"tokenizer-mode|trust-remote-code"
)
"""Flags that all releases have."""
_HISTORY: tuple[tuple[str, str], ...] = (
    (
        r"omni|stage-configs-path|stage-id",
        (
            "The flag is vllm-omni's: install the vllm-omni release that belongs to this vLLM (the "
            "same minor number: `pip list | grep -i vllm`) in this environment, use its image, "
            "or remove the flag under `args`."
        ),
    ),
    (
        r"enable-reasoning",
        "Remove it under `args`; `features.tool_calling.reasoning_parser` alone is enough.",
    ),
    (r"guided-decoding-[\w-]{1,40}", _STRUCTURED),
    (
        r"disable-log-requests",
        "Remove it under `args`: requests are not logged unless `--enable-log-requests` is given.",
    ),
    (r"task", "Use `args.runner` (generate, pooling, draft) and `args.convert` for it."),
    (
        r"rope-scaling|rope-theta",
        "Use `args.hf-overrides` for it (`rope_parameters` or `rope_scaling` in JSON).",
    ),
    (r"cuda-graph-sizes", "Use `args.cudagraph-capture-sizes` for it."),
    (r"device", "Remove it under `args`: the installed platform plug-in decides about the device."),
    (
        (
            r"speculative-(?!config)[\w-]{1,40}|num-speculative-tokens|ngram-prompt-lookup-\w{1,5}|"
            r"spec-decoding-[\w-]{1,40}|typical-acceptance-[\w-]{1,60}"
        ),
        _SPECULATIVE,
    ),
    (
        (
            r"num-scheduler-steps|multi-step-stream-outputs|use-v2-block-manager|preemption-mode|"
            r"num-lookahead-slots|scheduler-delay-factor|enable-prompt-adapter|max-prompt-adapters|"
            r"max-prompt-adapter-token|worker-use-ray|engine-use-ray|max-parallel-loading-workers|"
            r"quantization-param-path|tokenizer-pool-[\w-]{1,30}|max-context-len-to-capture"
        ),
        _V0,
    ),
    (
        (
            r"temperature|top-[pk]|min-p|(?:repetition|presence|frequency|length)-penalty|stop|"
            r"max-(?:new-|completion-)?tokens|best-of|n-predict|logprobs|do-sample|num-beams"
        ),
        (
            "It is a parameter of a request and no flag of the server: send it with each request, "
            "or set the server's default with `args.override-generation-config` (JSON)."
        ),
    ),
    (r"lora-paths?", "vLLM's flag for it is `args.lora-modules` (NAME=PATH)."),
    (r"disable-radix-cache", "vLLM's flag for it is `args.enable-prefix-caching: false`."),
    (r"chunked-prefill-size", "vLLM's flag for it is `args.max-num-batched-tokens`."),
    (r"enable-ep-moe|ep-size|ep", "vLLM's switch for it is `parallel.expert: true`."),
    (r"dist-init-addr", "vLLM's flags for it are --master-addr and --master-port (`network`)."),
    (r"max-running-requests", "vLLM's flag for it is `args.max-num-seqs`."),
    (
        r"sequence-parallel-size|ulysses-[\w-]{1,40}|shift-parallel-threshold",
        (
            "The flag is ArcticInference's: install the release that names this vLLM, and set "
            "`env.ARCTIC_INFERENCE_ENABLED: 1` where it needs that."
        ),
    ),
    (
        (
            r"served-model|tensor-parallel|gpu-memory|max-model-length|model-path|tp|dp|pp|"
            r"tp-size|dp-size|mem-fraction-static|context-length|trust_remote"
        ),
        (
            "It is a flag of another engine, or shortened: under `args` use vLLM's whole names "
            "(served-model-name, tensor-parallel-size, gpu-memory-utilization, max-model-len)."
        ),
    ),
)


def is_flag_of_all(flag: str) -> bool:
    """Whether all releases of vLLM have this flag."""
    return _ALWAYS.fullmatch(flag.lstrip("-").partition("=")[0].replace("_", "-")) is not None


def flag_successor(flag: str) -> str:
    """Return what to do about a flag that this release has not; "" when the table has no word."""
    name = flag.lstrip("-").partition("=")[0].replace("_", "-")
    told = next((told for names, told in _HISTORY if re.fullmatch(names, name)), "")
    if told:
        return told
    if is_flag_of_all(name):
        return _ONE_WORD
    flags = read_flags()
    if name in flags:
        return (
            "A newer release of vLLM has it: use the release (or the image of vllm-ascend) that "
            "the recipe or the tutorial names, or leave it out under `args`."
        )
    near = difflib.get_close_matches(name, list(flags), n=1, cutoff=_NEAR)
    return f"The flag is called `{near[0]}`: write that under `args`." if near else ""
