"""Words of CANN's error blocks that say more exactly than their code what failed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """What a block's words say more exactly than its code."""

    words: str
    cause: str
    remedy: str


TEXTS: tuple[Text, ...] = (
    Text(
        r"\w launch kernel failed\b",
        "An operator could not be launched: it does not take the shapes, the mask or the mode (a "
        "captured graph) in which this release of vllm-ascend calls it for this model",
        "Set `args.enforce-eager: true` first (models for embeddings and scores do not gain by "
        "graphs), or use a newer release or image of vllm-ascend.",
    ),
    Text(
        r"[Aa]ttr(?:ibute)? \w{2,40} (?:is )?(?:invalid|not supported|unsupported)",
        "An operator does not know the value of an attribute that its caller gives it: the "
        "operators and vllm-ascend (or torch_npu) are of different releases, or the value is for "
        "another NPU generation",
        "Install the CANN with its kernels (and the operator package) that this vllm-ascend names, "
        "or use the release's image for this NPU; else leave out the option that sets the "
        "attribute, for experts `parallel.expert: false`.",
    ),
    Text(
        r"\(BS\) (?:is )?invalid|\bBS\b[^\n]{0,40}(?:should|must) (?:be )?(?:in|between|not)",
        "A rank gives the exchange of experts more tokens in a step than the operator takes",
        "Lower `args.max-num-seqs` and `args.max-num-batched-tokens` below the limit in the "
        "message (with data parallelism they count for each rank; speculative decoding "
        "multiplies the sequences), or use a newer release of CANN and vllm-ascend.",
    ),
    Text(
        r"support for Ascend\w{1,20} is not implemented|"
        r"(?:[Oo]p(?:erator)?|kernel) \w{2,80} (?:is |does )?not support\w{0,3} (?:the |this )?"
        r"(?:soc|chip|npu)",
        "An operator of this build has no kernel for this NPU",
        "Use a build or image of CANN, its kernels and the program for this chip (`npu-smi "
        "info`); operators that were added (vendors below opp, a package of custom operators) "
        "must be built for it, too. For an operator of MoE (Moe..., dispatch, combine) "
        "`parallel.expert: false` does without until then.",
    ),
    Text(
        r"is (?:a )?null ?pt?r|is null\b|is required, but|(?:should|must|can) ?not be null",
        "An operator was called without an input that it needs: this release does not serve this "
        "combination of model and features",
        "No tuning variable helps. Switch off what the operator is called for (context "
        "parallelism: `parallel.decode_context: 1`, `parallel.prefill_context: 1`; no "
        "`features.speculative`; `parallel.expert: false` for MoE), or use a newer release or "
        "another image of vllm-ascend, made for this NPU generation.",
    ),
    Text(
        r"(?i)unsupported (?:atten_?|attention ?)mask|"
        r"(?:atten_?|attention ?)mask shape[^\n]{0,60}(?:invalid|not support|should be|must be)",
        "An attention operator does not take a mask of the shape that this release of vllm-ascend "
        "(or torch_npu) gives it for this model",
        "No tuning variable helps: use a newer release or image of vllm-ascend; if the model's "
        "vision or audio part calls the operator, requests of text alone may work "
        "(`args.limit-mm-per-prompt` of 0 for that modality).",
    ),
    Text(
        r"(?i)(?:query|key|value|\bq|\bk|\bv) ?(?:head)?_?(?:D|headdim)\(\d{1,4}\)[^\n]{0,80}"
        r"(?:must|should|only)|head ?dim\b[^\n]{0,40}(?:only support|must be|should be) ",
        "An attention operator of this CANN does not take heads of this model's size (head_dim)",
        "Install the CANN and torch_npu that this vllm-ascend names, or use its newest image: "
        "newer releases pad the heads or call another operator; no tuning variable helps.",
    ),
    Text(
        r"(?i)layout is TND,? (?:does )?not support page ?attention",
        "An attention operator of this CANN does not read paged caches in the layout TND, which "
        "this vllm-ascend uses: CANN is older than it needs",
        "Install the CANN (toolkit and kernels) and torch_npu that this vllm-ascend names, or use "
        "the release's image.",
    ),
    Text(
        r"(?i)antiquantGroupSize should be|group_?size[^\n]{0,40}(?:should|must|only)[^\n]{0,60}"
        r"but (?:actual|got)",
        "The weights are quantised in groups of a size that the operator does not take in this "
        "layout",
        "Set `env.VLLM_ASCEND_ENABLE_NZ: 0` (newer releases: `weight_nz_mode: 0` in "
        "`args.additional-config`), which keeps the weights out of the layout FRACTAL_NZ; or "
        "quantise the model again with a group size that the message names (`--group_size 128`), "
        "or download weights that are.",
    ),
    Text(
        r"[Nn]ot support\w{0,3}\b[^\n]{0,80}FRACTAL_NZ|FRACTAL_NZ[^\n]{0,60}[Nn]ot support|"
        r"format[^\n]{0,20}(?:should|must) be ND\b",
        "An operator does not take a weight of this shape in the layout FRACTAL_NZ",
        "Set `env.VLLM_ASCEND_ENABLE_NZ: 0` (newer releases: `weight_nz_mode: 0` in "
        "`args.additional-config`), which keeps the weights in ND, or use a newer release of "
        "vllm-ascend, which leaves such weights in ND.",
    ),
    Text(
        r"capture mode (?:does )?not (?:support|allow)",
        "A copy or another operation that waits was called during graph capture, which does not "
        "allow it",
        "Set `args.enforce-eager: true` or `args.compilation-config: {cudagraph_mode: PIECEWISE}`, "
        "or leave off what copies between host and NPU in a step (offloading of weights or cache "
        "to the CPU), or use another release of vllm-ascend.",
    ),
    Text(
        r"coreDim=\d{1,9} can'?t be greater|blockDim=?\d{1,9}[^\n]{0,40}(?:greater|exceed)",
        "A Triton kernel was started with more blocks than an NPU takes (65535)",
        "Lower `args.max-num-batched-tokens` (and `args.max-model-len`); `env."
        "TRITON_ALL_BLOCKS_PARALLEL: 1` lets triton-ascend fold the blocks; or use a newer release "
        "of vllm-ascend and triton-ascend.",
    ),
    Text(
        r"(?i)can ?not find (?:the )?binary (?:for|of) (?:op|kernel)|no binary (?:for|of) op\b",
        "No compiled kernel of an operator is installed for this NPU: torch_npu or CANN's kernels "
        "are older than this NPU generation or vllm-ascend needs, or made for another one",
        "Install the torch_npu (its `.post` release counts) and CANN's kernels or ops package for "
        "this NPU generation that this vllm-ascend names, or use a newer image made for it; "
        "compare `pip show torch_npu` and `npu-smi info` with that list.",
    ),
    Text(
        r"does not support opType \[",
        "No installed package has this operator for this NPU (one of vllm-ascend's own that is not "
        "built or sourced for it, or CANN's kernels are older or missing)",
        "Use the release's image for this NPU. Otherwise build vllm-ascend's operators for it "
        "(SOC_VERSION) and source their set_env.bash (ASCEND_CUSTOM_OPP_PATH), and install the "
        "kernels of the toolkit's release.",
    ),
    Text(
        r"opp_kernel|binary_info_config\.json|[Oo]pp kernel|[Pp]arse dynamic kernel config|"
        r"ADD_TO_LAUNCHER_LIST",
        "CANN's package of compiled operators (opp kernels) for this NPU is not installed",
        "Install Ascend-cann-kernels (or -ops) of the same release as the toolkit and for this NPU "
        "generation, and source set_env.sh; or use the release's image for this generation.",
    ),
    Text(
        r"init soc version failed",
        "The runtime cannot read the type of the NPU (SoC version): the driver does not answer, or "
        "is of another release than CANN",
        "Try `npu-smi info` where the server runs: mount /usr/local/Ascend/driver and the device "
        "files into the container, and install the driver that this CANN names.",
    ),
    Text(
        r"not implemented for DT_BFLOAT16|DT_BF(?:LOAT)?16 (?:is )?not support[^\n]{0,30}soc|"
        r"dtype or format is not supported[^\n]{0,80}DT_BFLOAT16",
        "An operator does not take bfloat16 on this NPU (310P and 910A have no bfloat16)",
        "Set `args.dtype: float16`; if that is set, a part of the model keeps a type of its own "
        "(`torch_dtype` in its config.json): use a release of vllm-ascend whose image is made for "
        "this NPU generation.",
    ),
    Text(
        r"not implemented for DT_FLOAT16\b[^\n]{0,60}\[[^\]]{0,200}DT_BFLOAT16",
        "An operator of this model takes bfloat16 and not float16 (a quantised product and its "
        "scales)",
        "Set `args.dtype: bfloat16` (or leave it out for a model that is bfloat16); on an NPU "
        "without bfloat16 use weights with another quantisation.",
    ),
    Text(
        r"GEInitialize failed|GELib::InnerInitialize|OpCompileProcessor init failed|"
        r"Init compiler failed",
        "CANN's operator compiler (GE) cannot be initialised: Python packages that it needs are "
        "missing, its environment was not set, or CANN, driver and torch_npu do not fit",
        "`source /usr/local/Ascend/ascend-toolkit/set_env.sh` before `ray start` and try `python "
        "-c 'import te, tbe'` there; compare CANN with the release that this torch_npu and the "
        "driver (`npu-smi info`) need; the plog of the process names the step.",
    ),
    Text(
        r"(?:GetDeviceCount|get device count|get hardware version)[^\n]{0,200}"
        r"(?:driver error:internal error|507899)|get hardware version fail",
        "The NPU driver does not answer this process: it is not (wholly) mounted into the "
        "container, or is older than this CANN needs",
        "Try `npu-smi info` where the server runs; mount /usr/local/Ascend/driver, "
        "/usr/local/dcmi and the device files (/dev/davinci*, davinci_manager, devmm_svm, "
        "hisi_hdc); compare /usr/local/Ascend/driver/version.info with the driver that this CANN "
        "names, and install that one.",
    ),
    Text(
        r"Parse blockDim failed|[Ff]ailed to parse json or compress op|PackageTvmJson|"
        r"re-?compile (?:single )?op\b|Failed to compile graph with compiler|ParalCompOp|"
        r"OptimizeFusedGraph failed",
        "CANN's operator compiler gave no usable result for an operator: its working folder "
        "(kernel_meta) cannot be written or was emptied by another process, or the compiler or a "
        "Python package it needs is broken",
        "Start the server in a folder that it may write, or set `env.ASCEND_WORK_PATH` (each "
        "server one of its own); try `python -c 'import te, tbe'` with CANN's set_env.sh sourced; "
        "compare CANN with the release that this torch_npu needs; the plog of the process has the "
        "compiler's own message.",
    ),
    Text(
        r"tsd client|unknown device error|driver error:internal error",
        "The service on the NPU (TSD) or the driver does not answer: the device hangs, is being "
        "reset, or another process or container holds it",
        "Run `npu-smi info` and `dmesg -T` on that node; end other processes on that NPU, then "
        "`npu-smi set -t reset -i N -c 0`; if it comes again, exclude the node.",
    ),
    Text(
        r"InitOpInfoLib|InitOpKernel|op info lib",
        "The description of an operator package does not fit this CANN",
        "The custom operators (vllm-ascend's own, or a vendor's below opp/vendors) were built for "
        "another CANN: build them again or remove them, or use the release's image.",
    ),
    Text(
        r"AddRmsNorm\w{0,20} do tiling failed|do tiling failed|[Tt]iling failed",
        "An operator cannot split its input over the cores (tiling): the shapes that the model "
        "or a feature gives it do not fit",
        "No tuning variable helps. Switch off the feature that calls it (speculative decoding: no "
        "`features.speculative`; graphs: `args.enforce-eager: true`; MoE: `parallel.expert: "
        "false`), or use a newer release or image of vllm-ascend.",
    ),
)
