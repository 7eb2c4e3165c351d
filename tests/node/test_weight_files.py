import json
import os

import pytest

from raylaunch.node.model.storage import mount_of
from raylaunch.node.model.weight_files import inspect_weights


def shard(file, data=100, *, cut=0):
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "w": {"dtype": "U8", "shape": [data], "data_offsets": [0, data]},
        }
    ).encode()
    file.write_bytes((len(header).to_bytes(8, "little") + header + bytes(data))[: -cut or None])
    return file


@pytest.fixture
def model(tmp_path):
    """A whole model of two shards."""
    folder = tmp_path / "MiniMax-M2.5"
    folder.mkdir()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name in names:
        shard(folder / name)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "minimax_m2", "hidden_size": 3072})
    )
    index = {
        "metadata": {"total_size": 200},
        "weight_map": dict(zip("abcd", names * 2, strict=True)),
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_a_whole_model(model):
    found = inspect_weights(str(model))
    assert found.exists
    assert (found.missing, found.damaged) == ((), ())
    assert found.model_type == "minimax_m2"
    assert found.config["hidden_size"] == 3072
    assert list(found.files) == sorted(file.name for file in model.iterdir())
    assert found.total_bytes == sum(file.stat().st_size for file in model.iterdir())
    assert found.filesystem


def test_a_path_that_is_not_there(tmp_path):
    found = inspect_weights(str(tmp_path / "absent"))
    assert not found.exists
    assert found.files == {}


def test_a_missing_shard_is_named(model):
    (model / "model-00002-of-00002.safetensors").unlink()
    assert inspect_weights(str(model)).missing == ("model-00002-of-00002.safetensors",)


def test_a_link_to_nowhere_is_a_missing_shard(model):
    name = model / "model-00002-of-00002.safetensors"
    name.unlink()
    name.symlink_to(model / "blobs" / "gone")
    assert inspect_weights(str(model)).missing == (name.name,)


def test_a_linked_shard_has_the_size_of_its_target(model, tmp_path):
    name = model / "model-00002-of-00002.safetensors"
    blob = name.rename(tmp_path / "blob")
    name.symlink_to(blob)
    found = inspect_weights(str(model))
    assert found.files[name.name] == blob.stat().st_size
    assert (found.missing, found.damaged) == ((), ())


@pytest.mark.parametrize("cut", [1, 100, 120, 10_000])
def test_a_truncated_shard_is_damaged(model, cut):
    whole = shard(model / "model-00002-of-00002.safetensors")
    size = whole.stat().st_size
    os.truncate(whole, max(size - cut, 0))
    found = inspect_weights(str(model))
    assert found.damaged == (whole.name,)
    assert found.missing == ()


def test_a_shard_with_a_nonsense_header_is_damaged(model):
    (model / "model-00001-of-00002.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\n"
    )
    assert inspect_weights(str(model)).damaged == ("model-00001-of-00002.safetensors",)


@pytest.mark.parametrize("text", ["", "{", "[]", "\ufffd"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_that_cannot_be_read_is_damaged_and_the_rest_is_reported(model, name, text):
    (model / name).write_text(text)
    found = inspect_weights(str(model))
    assert found.damaged == (name,)
    assert len(found.files) == 4


def test_json_nested_too_deep_is_damaged_and_an_endless_offset_is_ignored(model):
    (model / "config.json").write_text("[" * 200_000)
    shard_file = model / "model-00002-of-00002.safetensors"
    header = b'{"w": {"data_offsets": [0, ' + b"9" * 5000 + b"]}}"
    shard_file.write_bytes(len(header).to_bytes(8, "little") + header)
    assert inspect_weights(str(model)).damaged == ("config.json",)


@pytest.mark.parametrize("size", ["NaN", "Infinity", "1e999", "[]"])
def test_a_total_size_that_is_no_size_counts_as_none(model, size):
    text = f'{{"weight_map": {{}}, "metadata": {{"total_size": {size}}}}}'
    (model / "model.safetensors.index.json").write_text(text)
    assert inspect_weights(str(model)).expected_bytes == 0


def test_an_index_without_a_map_is_damaged(model):
    (model / "model.safetensors.index.json").write_text("{}")
    assert inspect_weights(str(model)).damaged == ("model.safetensors.index.json",)


def test_a_model_of_one_file_needs_no_index(tmp_path):
    shard(tmp_path / "model.safetensors")
    found = inspect_weights(str(tmp_path))
    assert (found.missing, found.damaged, found.model_type) == ((), (), None)


def test_subfolders_count_one_level_deep_and_hidden_ones_do_not(model):
    for below in ("draft", "draft/deeper", ".cache"):
        (model / below).mkdir()
        shard(model / below / "model.safetensors")
    index = {"weight_map": {"a": "model.safetensors", "b": "absent.safetensors"}}
    (model / "draft" / "model.safetensors.index.json").write_text(json.dumps(index))
    found = inspect_weights(str(model))
    assert [name for name in found.files if "/" in name] == [
        "draft/model.safetensors",
        "draft/model.safetensors.index.json",
    ]
    assert found.missing == ("draft/absent.safetensors",)


def refuse(monkeypatch, folder):
    """Listing a folder is refused, also to root."""
    listed = os.scandir

    def scandir(path):
        if os.fspath(path) == str(folder):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)


def test_a_subfolder_that_may_not_be_listed_counts_as_empty(model, monkeypatch):
    """A model that is a file system of its own has root's lost+found."""
    before = inspect_weights(str(model))
    (model / "lost+found").mkdir()
    refuse(monkeypatch, model / "lost+found")
    assert inspect_weights(str(model)).files == before.files


def test_a_folder_that_may_not_be_listed_is_an_error(model, monkeypatch):
    refuse(monkeypatch, model)
    with pytest.raises(PermissionError):
        inspect_weights(str(model))


def test_a_single_file_is_a_model_too(tmp_path):
    file = shard(tmp_path / "model.safetensors", cut=1)
    found = inspect_weights(str(file))
    assert found.files == {"model.safetensors": file.stat().st_size}
    assert found.damaged == ("model.safetensors",)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert inspect_weights(str(tmp_path / "model.gguf")).damaged == ()


def test_the_filesystem_is_that_of_the_innermost_mount():
    assert mount_of("/proc/sys/vm").filesystem == "proc"
    assert mount_of("/").filesystem != "proc"


def test_a_folder_to_be_made_has_a_place_and_room(tmp_path):
    found = inspect_weights(str(tmp_path / "absent"))
    assert found.free_bytes > 0
    assert found.place
    assert found.filesystem


def test_the_index_gives_the_expected_size(model):
    assert inspect_weights(str(model)).expected_bytes == 200
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {}, "metadata": {"total_size": "?"}})
    )
    assert inspect_weights(str(model)).expected_bytes == 0


def test_models_of_equal_names_and_sizes_have_other_fingerprints(model):
    """As MiniMax-M2.5 and M2.7. A note beside the weights does not count."""
    before = inspect_weights(str(model))
    (model / "README.md").write_text("read me")
    assert inspect_weights(str(model)).fingerprint == before.fingerprint
    file = model / "model-00002-of-00002.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    after = inspect_weights(str(model))
    assert after.files == before.files | {"README.md": 7}
    assert after.fingerprint != before.fingerprint
