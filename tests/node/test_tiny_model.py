"""The tiny model: complete, equal everywhere, loadable as vLLM does it, safe to make in parallel."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

from raylaunch.errors import NodeError
from raylaunch.node.model.tiny_model import SENTENCE, WORDS, ensure_tiny_model, is_complete
from raylaunch.node.model.weight_files import inspect_weights
from raylaunch.node.probe.vllm_cpu_metadata import ensure_vllm_metadata

KINDS = ("qwen3", "minimax_m2")


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_complete_and_whole(kind, tmp_path):
    folder = ensure_tiny_model(kind, tmp_path / "models" / kind)
    seen = inspect_weights(str(folder))
    assert (seen.exists, seen.model_type, seen.missing, seen.damaged) == (True, kind, (), ())
    assert is_complete(folder)
    assert [path.name for path in folder.parent.iterdir()] == [kind]  # no scratch folder stays


@pytest.mark.parametrize("kind", KINDS)
def test_every_node_makes_the_same_bytes(kind, tmp_path):
    first, second = (ensure_tiny_model(kind, tmp_path / name) for name in ("first", "second"))
    assert read_all(first) == read_all(second)


@pytest.mark.parametrize("mark", ["minimax:tool_call", "think"])
def test_a_tiny_minimax_has_the_tokens_that_its_parsers_look_for(mark, tmp_path):
    tokenizer = Tokenizer.from_file(
        str(ensure_tiny_model("minimax_m2", tmp_path) / "tokenizer.json")
    )
    for token in (f"<{mark}>", f"</{mark}>"):
        assert tokenizer.encode(token).tokens == [token]


def read_all(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_there_is_left_alone(tmp_path):
    folder = ensure_tiny_model("qwen3", tmp_path / "tiny")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    ensure_tiny_model("qwen3", folder)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_servers_of_one_node_may_make_it_at_the_same_moment(tmp_path):
    barrier = Barrier(8)

    def make(_: int) -> bool:
        barrier.wait(timeout=60)
        return is_complete(ensure_tiny_model("qwen3", tmp_path / "tiny"))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(make, range(8)))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_it_replaces_an_empty_folder_and_never_a_filled_one(tmp_path):
    empty, filled = tmp_path / "empty", tmp_path / "filled"
    empty.mkdir()
    filled.mkdir()
    (filled / "config.json").write_text("{}")
    assert is_complete(ensure_tiny_model("qwen3", empty))
    with pytest.raises(NodeError, match="holds no complete model") as caught:
        ensure_tiny_model("qwen3", filled)
    assert f"rm -r {filled}" in caught.value.todo
    assert [path.name for path in filled.iterdir()] == ["config.json"]
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "filled"}


def test_a_disk_that_refuses_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NodeError, match="could not be written"):
        ensure_tiny_model("qwen3", tmp_path / "file" / "tiny")


@pytest.mark.parametrize("kind", KINDS)
def test_weights_have_the_shapes_of_the_configuration(kind, tmp_path):
    folder = ensure_tiny_model(kind, tmp_path / kind)
    config = json.loads((folder / "config.json").read_text())
    with safe_open(folder / "model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        ones, random = (
            file.get_tensor("model.norm.weight"),
            file.get_tensor("model.embed_tokens.weight").float(),
        )
    assert shapes["lm_head.weight"] == [config["vocab_size"], config["hidden_size"]]
    experts = {name for name in shapes if ".experts." in name}
    assert len(experts) == (3 * 8 * config["num_hidden_layers"] if kind == "minimax_m2" else 0)
    assert ones.unique().tolist() == [1.0]
    assert 2**-7 <= random.abs().min() <= random.abs().max() < 2**-5
    assert abs(random.mean()) < 0.001


def test_the_tokenizer_knows_its_words_and_every_byte(tmp_path):
    tokenizer = Tokenizer.from_file(
        str(ensure_tiny_model("qwen3", tmp_path / "tiny") / "tokenizer.json")
    )
    assert len(tokenizer.encode(f" {SENTENCE}").ids) == len(WORDS)
    for text in (SENTENCE, "Überall 好 \n\t\x00 🚀 <|user|>", bytes(range(256)).decode("latin-1")):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_configuration_tokenizer_and_template(kind, tmp_path):
    folder = ensure_tiny_model(kind, tmp_path / kind)
    code = (
        "import sys\n"
        "from transformers import AutoConfig, AutoTokenizer\n"
        "config = AutoConfig.from_pretrained(sys.argv[1])\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "messages = [{'role': 'user', 'content': 'hello'}]\n"
        "text = tokenizer.apply_chat_template(messages, tokenize=False,"
        " add_generation_prompt=True)\n"
        "same_eos = tokenizer.eos_token_id == config.eos_token_id\n"
        "print(config.model_type, same_eos, len(tokenizer) <= config.vocab_size)\n"
        "print(text, tokenizer.encode(text)[0] == tokenizer.convert_tokens_to_ids('<|user|>'))"
    )
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{kind} True True",
        "<|user|>hello<|end|><|assistant|> True",
    ]


def test_making_a_model_needs_only_the_standard_library(tmp_path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from raylaunch.node.model.tiny_model import ensure_tiny_model\n"
        "ensure_tiny_model('qwen3', Path(sys.argv[1]))\n"
        "heavy = {'torch', 'transformers', 'numpy', 'ray', 'tokenizers', 'safetensors'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "tiny")]
    assert (
        subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60
        ).stdout.strip()
        == ""
    )


def test_metadata_answers_for_vllm_and_is_written_once(tmp_path):
    folder = tmp_path / "vllm-metadata" / "0.32.0"
    ensure_vllm_metadata(folder)
    (file,) = (path for path in folder.rglob("*") if path.is_file())
    before = file.stat().st_mtime_ns, file.stat().st_ino
    ensure_vllm_metadata(folder)
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == before
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from importlib.metadata import version; print(version('vllm'))"
    )
    command = [sys.executable, "-c", code, str(folder)]
    assert (
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        == "0.32.0+cpu\n"
    )


def test_metadata_on_a_disk_that_refuses(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NodeError, match="metadata of vllm"):
        ensure_vllm_metadata(tmp_path / "file" / "0.32.0")
