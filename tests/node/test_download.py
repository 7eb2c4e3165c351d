"""A download with stand-ins for the hubs' programs: as far as it is, interrupted, resumed, refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from raylaunch.errors import NodeError
from raylaunch.node.model.download import LOCK, Download, find_programs, written_bytes
from raylaunch.node.model.weight_files import inspect_weights
from raylaunch.node.process.process_markers import find_marked
from raylaunch.plan.wanted_weights import Wanted, download_argv, gaps_of
from raylaunch.recipe.model import Sources

HUB = Path(__file__).resolve().parents[1] / "standin" / "hub"
SOURCES = Sources(modelscope="MiniMax/MiniMax-M2.5", huggingface="MiniMaxAI/MiniMax-M2.5")
DEADLINE_S = 60.0
TOTAL = 3 << 20


class Yard:
    """A folder for the model, one for what the stand-in records, and downloads that end with the test."""

    def __init__(self, folder: Path) -> None:
        self.model, self.record, self.log = (
            folder / "models" / "m",
            folder / "record",
            folder / "logs" / "m.log",
        )
        self.record.mkdir()
        self.label = f"weights of test {os.getpid()} {folder.name}"
        self.env = {**os.environ, "STANDIN_HUB": str(self.record), "STANDIN_PYTHON": sys.executable}
        self.started: list[Download] = []

    def start(self, hub="modelscope", needed=0) -> Download:
        argv = download_argv(
            hub,
            Wanted("model", f"{self.model}/", SOURCES),
            str(HUB / {"huggingface": "hf"}.get(hub, hub)),
        )
        number = len(self.started)
        one = Download(argv, self.model, self.log, self.env, label=self.label, number=number)
        one.start(needed)
        self.started.append(one)
        return one

    def await_hold(self) -> list[int]:
        deadline = time.monotonic() + DEADLINE_S
        while not (self.record / "held").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return json.loads((self.record / "held").read_text())

    def calls(self) -> list[dict]:
        return [json.loads(line) for line in (self.record / "calls").read_text().splitlines()]


@pytest.fixture
def yard(tmp_path):
    it = Yard(tmp_path)
    yield it
    for one in it.started:
        one.stop()


def finish(download: Download):
    progress = download.wait(DEADLINE_S)
    assert not progress.running
    return progress


@pytest.mark.parametrize("hub", ["modelscope", "huggingface"])
def test_a_download_fills_the_folder(yard, hub):
    progress = finish(yard.start(hub))
    assert (progress.exit_code, progress.failed, progress.error) == (0, False, "")
    assert progress.total_bytes == TOTAL
    assert progress.have_bytes >= TOTAL
    assert gaps_of(inspect_weights(str(yard.model))) == ""
    assert yard.calls()[0]["start"][-1] == str(yard.model), "no slash at the end"


def test_the_end_takes_the_whole_tree_and_the_next_one_goes_on(yard):
    (yard.record / "hold").touch()
    first = yard.start()
    pids = yard.await_hold()
    progress = first.wait(0)
    assert progress.running
    assert progress.total_bytes == TOTAL
    assert TOTAL // 3 < progress.have_bytes < TOTAL, "the unfinished shard counts"
    assert progress.line.startswith("Downloading [model-00002-of-00003.safetensors]"), progress.line
    assert {found.pid for found in find_marked(yard.label)} >= set(pids)

    assert first.stop() == ()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert find_marked(yard.label) == []
    assert "model-00002-of-00003.safetensors" in gaps_of(inspect_weights(str(yard.model)))

    (yard.record / "hold").unlink()
    assert finish(yard.start()).exit_code == 0
    begins = {call["shard"]: call["begins_at"] for call in yard.calls() if "shard" in call}
    assert begins["model-00002-of-00003.safetensors"] > 500_000, "not from the beginning"
    assert gaps_of(inspect_weights(str(yard.model))) == ""


def test_the_death_of_the_owner_ends_it(yard):
    (yard.record / "hold").touch()
    program = f"""
import os, signal
from pathlib import Path
from raylaunch.node.model.download import Download
argv = ({str(HUB / "modelscope")!r}, "download", "--model", "a/b", "--local_dir", {str(yard.model)!r})
Download(argv, Path({str(yard.model)!r}), Path({str(yard.log)!r}), os.environ, label={yard.label!r}, number=0).start()
print("up", flush=True)
signal.pause()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], env=yard.env, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout.readline() == "up\n"
        pids = yard.await_hold()
        handles = [psutil.Process(pid) for pid in pids]
        owner.kill()
    gone, left = psutil.wait_procs(handles, timeout=DEADLINE_S)
    assert not left
    assert len(gone) == 2


def test_a_second_download_into_the_same_folder_is_refused_until_the_first_ends(yard):
    (yard.record / "hold").touch()
    first = yard.start()
    yard.await_hold()
    with pytest.raises(NodeError, match="another download into"):
        yard.start()
    first.stop()
    (yard.record / "hold").unlink()
    assert finish(yard.start()).exit_code == 0


def test_what_a_failed_program_said_is_told(yard):
    (yard.record / "fail").touch()
    progress = finish(yard.start())
    assert progress.failed
    assert progress.exit_code == 1
    assert progress.tail[-1] == "ERROR: connection reset by the hub"
    assert progress.log == str(yard.log)


def test_a_program_that_cannot_be_started_is_a_failure(yard, tmp_path):
    one = Download(
        [str(tmp_path / "none"), "x"], yard.model, yard.log, yard.env, label=yard.label, number=0
    )
    one.start()
    yard.started.append(one)
    progress = finish(one)
    assert progress.failed
    assert "No such file" in progress.error


def test_a_disk_without_room_is_refused_before_anything_is_started(yard):
    with pytest.raises(NodeError, match="still to come"):
        yard.start(needed=1 << 60)
    assert not (yard.record / "calls").exists()


def test_a_folder_that_cannot_be_made_is_refused(yard):
    yard.model.parent.write_text("a file")
    with pytest.raises(NodeError, match="cannot be started"):
        yard.start()


def test_a_file_made_in_full_size_ahead_has_only_what_was_written(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(100 << 20)
        file.write(bytes(8192))
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "part").write_bytes(bytes(4096))
    assert 8192 + 4096 <= written_bytes(tmp_path) < 1 << 20


def test_programs_are_looked_for_on_the_path_and_beside_python(tmp_path):
    assert find_programs({"PATH": str(HUB)}, "/nowhere/python") == {
        "modelscope": str(HUB / "modelscope"),
        "huggingface": str(HUB / "hf"),
    }
    for name in ("python", "hf"):
        (tmp_path / name).touch(mode=0o755)
    assert find_programs({"PATH": ""}, str(tmp_path / "python")) == {
        "huggingface": str(tmp_path / "hf")
    }
    assert find_programs({}, "/nowhere/python") == {}


def test_what_a_program_draws_cannot_move_the_cursor(yard):
    words = [
        sys.executable,
        "-S",
        "-c",
        r"print('\x1b[2K\x1b[1A\x1b[32m 45%|\u2588\u2588  | \x07 of 3\x1b[0m')",
    ]
    one = Download(words, yard.model, yard.log, yard.env, label=yard.label, number=0)
    one.start()
    yard.started.append(one)
    assert finish(one).line == "45%|\u2588\u2588  |  of 3"


def test_the_lock_is_no_file_of_the_model(yard):
    finish(yard.start())
    assert (yard.model / LOCK).exists()
    assert LOCK not in inspect_weights(str(yard.model)).files


def test_a_link_in_the_place_of_the_lock_is_not_followed(yard, tmp_path):
    yard.model.mkdir(parents=True)
    (yard.model / LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NodeError, match="cannot be started"):
        yard.start()
    assert not (tmp_path / "elsewhere").exists()


def test_the_real_hf_knows_these_words(tmp_path):
    """Offline it finds nothing; a word that it does not know would be a usage error (2)."""
    program = Path(sys.executable).with_name("hf")
    if not program.exists():
        pytest.skip("huggingface_hub is not installed")
    wanted = Wanted("model", str(tmp_path / "m"), SOURCES)
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        download_argv("huggingface", wanted, str(program)),
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "No such option" not in done.stderr
