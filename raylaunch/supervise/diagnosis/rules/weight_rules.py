"""Files of a model: missing shards, files that are no JSON, tensors of another size."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Reading, reason, shorten
from raylaunch.supervise.diagnosis.tracebacks import Raised, find_exceptions

_MISSING_FILE = re.compile(
    r"(?:No such file or directory|FileNotFoundError|No file named|Could not (?:find|locate)"
    r"(?: the)?|does not exist)[^\n]{0,40}?[\"'`: ]((?:/|\w)[^\s\"'`\n]{0,300}\."
    r"(?:safetensors|bin|pt|pth|gguf|json|py|model|jinja|tiktoken))\b"
)
_SHARD = re.compile(r"(\d{5})-of-(\d{5})\.")
_SIZES = re.compile(
    r"Tried to load weights of size torch\.Size\((\[[\d, ]{0,60}\])\) ?to a parameter of size "
    r"torch\.Size\((\[[\d, ]{0,60}\])\)|"
    r"Attempted to load weight \((?:torch\.Size\()?(\[[\d, ]{0,60}\])\)?\) into parameter "
    r"\((?:torch\.Size\()?(\[[\d, ]{0,60}\])|"
    r"weight shape mismatch: parameter has (\([\d, ]{0,60}\)), checkpoint has (\([\d, ]{0,60}\))|"
    r"size of tensor a \((\d{1,12})\) must match the size of tensor b \((\d{1,12})\)|"
    r"[Ss]hape mismatch[^\n]{0,60}?(\[[\d, ]{1,60}\])[^\n]{0,60}?(\[[\d, ]{1,60}\])|"
    r"start \(\d{1,12}\) \+ length \((\d{1,12})\) exceeds dimension size \((\d{1,12})\)"
)
_OF_A_LOADER = ("Attempted", "Tried to load", "weight shape")
_SHAPE_CODE = re.compile(r"assert [\w.()]{1,60}(?:shape|size\(\))\s?==|\.copy_\(|\.narrow\(")
_LOADER = re.compile(r"weight_loader|load_weights|load_row_parallel|load_column_parallel|_load_w")
_NOT_JSON = re.compile(
    r"Expecting (?:value|property name|',' delimiter|':' delimiter)[^\n]{0,60}: line \d{1,9} "
    r"column \d{1,9}|"
    r"(?:It looks like the config file at|file) '([^'\n]{1,300})' is not a valid JSON|"
    r"Extra data: line \d{1,9} column \d{1,9}|Unterminated string starting at: line"
)
_NO_CONFIG = re.compile(
    r"(?:Could not detect config format for no config file found|No supported config format found)"
    r"(?: in ([^\s,]{1,300}))?"
)
_FROM_A_MODEL = re.compile(r"transformers|vllm|huggingface_hub|tokenizers")
_TOKENIZER = re.compile(
    r"Couldn't instantiate the backend tokenizer|Failed to load the tokenizer|"
    r"Can't load tokenizer for '([^'\n]{1,300})'|"
    r"Converting from (?:SentencePiece and )?Tiktoken failed|"
    r"data did not match any variant of untagged enum (\w{1,40})|"
    r"Tokenizer class \w{1,60} (?:requires|needs)[^\n]{0,80}|"
    r"need to have (?:sentencepiece|tiktoken)"
)
_NO_ARCHITECTURE = re.compile(
    r"No model architectures are specified|"
    r"Unrecognized model in ([^\s,]{1,300})\. Should have a `model_type` key|"
    r"'architectures' (?:is|are) (?:missing|not)"
)


def read_weights(log: ServerLog) -> Iterator[Reading]:
    """Yield what is wrong with the files of the model."""
    for line, match in log.errors.find(_MISSING_FILE):
        if reading := _missing_file(line, match[1]):
            yield reading
    for line, match in log.errors.find(_NO_ARCHITECTURE):
        where = f" in {match[1]}" if match[1] else ""
        yield _found(
            line,
            "config-no-architecture",
            f"config.json of the model{where} names no architecture or model type: it is not the "
            "config.json of a model that vLLM serves, or the folder is another one (an adapter, a "
            "part of a diffusion model, an incomplete download).",
            "Check `architectures` and `model_type` in config.json under `model.path`; a LoRA "
            "adapter is served with its base model as `model.path`.",
        )
    for line, match in log.errors.find(_NO_CONFIG):
        what = f"`{match[1]}`" if match[1] else "The model"
        yield _found(
            line,
            "config-missing",
            f"{what} has no config.json (or params.json) that vLLM finds: the folder does not "
            "exist on this node, is one level too high, is incomplete, or is no model that vLLM "
            "serves (a diffusion model has model_index.json).",
            "Check `model.path` on this node: the folder itself must hold config.json (in the "
            "hub's cache that is snapshots/REVISION); download the rest, or mount it.",
        )
    for line, match in log.errors.find(_TOKENIZER):
        yield _no_tokenizer(line, match)
    for raised in find_exceptions(log):
        if reading := _other_size(raised) or _no_json(raised):
            yield reading
    yield from _no_json_in_pydantic(log)
    yield from _through_transformers(log)


_FALLBACK = re.compile(
    r"There is no module or parameter named '([\w.]{1,200})' in (Transformers\w{0,60})"
)


def _through_transformers(log: ServerLog) -> Iterator[Reading]:
    """Read that vLLM has no class of its own for the model, and transformers' class is another."""
    for line, match in log.errors.find(_FALLBACK):
        yield _found(
            line,
            "weights-mismatch",
            f"This release of vLLM has no class of its own for the model: it runs it through "
            f"transformers ({match[2]}), which does not know the tensor `{match[1]}` of the "
            "checkpoint (a part for images or audio, or a new kind of layer).",
            "Use a newer release of vLLM that lists the architecture in config.json (the one that "
            "the model card names), with the transformers that it names; until then serve another "
            "model.",
            certain=False,
        )


def _missing_file(line: int, path: str) -> Reading | None:
    name = path.rpartition("/")[2]
    if name.endswith((".json", ".py", ".model", ".jinja")) and "/" in path and "model" not in path:
        return None
    if name.endswith((".json", ".py", ".jinja", ".pt")) and not re.search(
        r"config|tokenizer|index|model|vocab|quant|template|processor", name
    ):
        return None
    if name.endswith(".py") and "/blobs/" in path:
        return _found(
            line,
            "model-code-in-cache",
            f"The model's own code cannot be read from the hub's cache: {path} is missing beside "
            "the blob. This transformers follows the links of the cache, where the other files of "
            "the code have no names.",
            "Download the model to a plain folder (`hf download MODEL --local-dir DIR`) and give "
            "it as `model.path`, or use another transformers release.",
            certain=False,
        )
    if "._____temp/" in path:
        return _found(
            line,
            "weights-missing",
            f"ModelScope's folder of a download under way has no {name}: another process moved or "
            "removed it (several workers or nodes download the same model into one cache), or an "
            "earlier download was broken off.",
            "Download the model once before the start (`modelscope download --model NAME "
            "--local_dir DIR`; remove `._____temp` in the cache first) and give that folder as "
            "`model.path`; if it recurs, install another release of modelscope.",
        )
    shard = _SHARD.search(name)
    part = f" (shard {int(shard[1])} of {int(shard[2])})" if shard else ""
    return _found(
        line,
        "weights-missing",
        f"A file of the model is missing on this node: {path}{part}. The download or copy is "
        "incomplete, or the folder is not mounted here; every node reads its own copy.",
        "Compare the folder `model.path` on this node with model.safetensors.index.json and with "
        "another node; download or copy what is missing.",
    )


def _no_tokenizer(line: int, match: re.Match[str]) -> Reading:
    if match[2]:
        return _found(
            line,
            "tokenizer-failed",
            f"tokenizer.json of the model is of a newer format ({match[2]}) than the installed "
            "tokenizers package reads, or it is damaged.",
            "Upgrade tokenizers and transformers in the server's environment (within the range of "
            "this vLLM), or use a newer image; otherwise download tokenizer.json again.",
        )
    where = f" of {match[1]}" if match[1] else ""
    return _found(
        line,
        "tokenizer-failed",
        f"The tokenizer{where} cannot be loaded: its files (tokenizer.json, tokenizer.model, "
        "vocabulary) are missing or damaged, or the package that converts them is not installed.",
        "Check tokenizer.json, tokenizer.model and tokenizer_config.json under `model.path` "
        "against the hub; `pip install sentencepiece tiktoken` in the server's environment; or "
        "name another tokenizer with `args.tokenizer`.",
        certain=False,
    )


def _other_size(raised: Raised) -> Reading | None:
    """Read an exception about sizes that a weight loader raised."""
    sizes = _SIZES.search(raised.message)
    in_loader = any(_LOADER.search(frame.function) for frame in raised.frames[:6])
    by_code = raised.type == "AssertionError" and not raised.message
    if not in_loader and not (sizes and sizes[0].startswith(_OF_A_LOADER)):
        return None
    if not sizes and not (by_code and _SHAPE_CODE.search(raised.code)):
        return None
    numbers = [group for group in sizes.groups() if group] if sizes else []
    shown = f" ({' and '.join(numbers)})" if numbers else ""
    where = f", in {raised.innermost.module_path}" if raised.innermost else ""
    way = " ".join(f"{frame.module_path} {frame.function}" for frame in raised.frames[:6])
    if re.search(r"spec_decode|eagle|medusa|_mtp\b|draft", way):
        return _found(
            raised.line,
            "weights-size",
            "A tensor of the draft model has another shape than this release builds it with"
            f"{shown}{where}: the draft is of another kind (EAGLE, EAGLE3, MTP) or size than "
            "`features.speculative` says, or this release does not know drafts for this model.",
            "Use the draft model and method that the model card names in `features.speculative`, "
            "with the release of vLLM that it names (a newer one); start without "
            "`features.speculative` until then.",
            certain=False,
        )
    return _found(
        raised.line,
        "weights-size",
        "A tensor of the checkpoint has another shape than the model was built with"
        f"{shown}{where}. The weights are quantised in a way that is not switched on, config.json "
        "belongs to other weights, or a dimension cannot be split over the tensor-parallel ranks.",
        "Check that config.json and the weights under `model.path` are of one download; set "
        "`args.quantization` (and `args.load-format`) to what made the weights (bitsandbytes, awq, "
        "gptq, ascend); try another `parallel.tensor`.",
        certain=bool(numbers),
    )


def _no_json(raised: Raised) -> Reading | None:
    if raised.type not in ("JSONDecodeError", "OSError", "ValueError"):
        return None
    found = _NOT_JSON.search(raised.message)
    packages = [frame.package for frame in raised.frames]
    if found is None or not any(_FROM_A_MODEL.match(package) for package in packages):
        return None
    if any(frame.module_path.startswith("vllm/entrypoints/openai") for frame in raised.frames[:3]):
        return None  # the body of a request
    return _broken_json(raised.line, found)


def _no_json_in_pydantic(log: ServerLog) -> Iterator[Reading]:
    """Read pydantic's report of ModelConfig, which has lost the frames of the exception."""
    for line, match in log.errors.find(_PYDANTIC_JSON):
        found = _NOT_JSON.search(match[0])
        if found is not None:
            # Another class may have been given JSON by an option.
            broken = _broken_json(line, found)
            yield replace(broken, certain="ModelConfig" in match[0])


_PYDANTIC_JSON = re.compile(
    r"validation errors? for \w{1,40}Config\n[^\n]{0,40}Value error, [^\n]{0,300}"
)


_LINE_OF_JSON = re.compile(r"line (\d{1,9}) column")
_FIRST_LINES = 3
"""An empty file, a page of HTML or a Git LFS pointer fails in its first lines."""


def _broken_json(line: int, found: re.Match[str]) -> Reading:
    if found[1] and re.search(r"\.(?:gguf|safetensors|bin|pt|pth|onnx)$", found[1]):
        return _found(
            line,
            "model-file-broken",
            f"The file {found[1]} was given as the model, and this release reads a config.json "
            "there: it takes no file of weights as a model, or not one of this form.",
            "Give the folder with config.json as `model.path`. For GGUF use a release of vLLM that "
            "reads it (with `args.tokenizer` and `args.hf-config-path` of the base model), or "
            "other weights.",
            certain=False,
        )
    path = f" {found[1]}" if found[1] else " in the model's folder"
    place = _LINE_OF_JSON.search(found[0])
    if place is not None and int(place[1]) > _FIRST_LINES:
        return _found(
            line,
            "model-file-broken",
            f"A JSON file{path} (config.json, quantize_config.json, tokenizer or processor) has a "
            f"mistake at its line {place[1]} ({shorten(found[0], 100)}): a comma too many before a "
            "closing bracket, as some tools write it, or the rest of the file is missing.",
            "Run `python -m json.tool FILE` on each *.json under `model.path` on this node: it "
            f"names the file. Correct its line {place[1]} (remove the comma), or download it "
            "again; write it again with a newer release of the tool that made it.",
        )
    return _found(
        line,
        "model-file-broken",
        f"A JSON file{path} (config.json, tokenizer or processor) is empty or is not JSON "
        f"({shorten(found[0], 100)}): a broken download, or a Git LFS pointer instead of the file.",
        "Run `python -m json.tool FILE` on each *.json under `model.path` on this node, and "
        "download or copy the broken file again.",
    )


def _found(line: int, id_: str, cause: str, remedy: str, *, certain: bool = True) -> Reading:
    return Reading(
        reason(id_, cause, remedy, "files of the model", "deterministic"), line, certain=certain
    )
