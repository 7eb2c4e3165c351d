"""A download with stand-ins for the hubs' programs: progress, interrupted, resumed, refused."""

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


class DownloadFixture:
    """Folders for a model and for the stand-in's records, and downloads that stop with the test."""

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
def place(tmp_path):
    it = DownloadFixture(tmp_path)
    yield it
    for one in it.started:
        one.stop()


def finish(download: Download):
    progress = download.wait(DEADLINE_S)
    assert not progress.running
    return progress


@pytest.mark.parametrize("hub", ["modelscope", "huggingface"])
def test_a_download_fills_the_folder(place, hub):
    progress = finish(place.start(hub))
    assert (progress.exit_code, progress.failed, progress.error) == (0, False, "")
    assert progress.total_bytes == TOTAL
    assert progress.have_bytes >= TOTAL
    assert gaps_of(inspect_weights(str(place.model))) == ""
    assert place.calls()[0]["start"][-1] == str(place.model), "no slash at the end"


def test_stop_kills_the_whole_tree_and_the_next_download_resumes(place):
    (place.record / "hold").touch()
    first = place.start()
    pids = place.await_hold()
    progress = first.wait(0)
    assert progress.running
    assert progress.total_bytes == TOTAL
    assert TOTAL // 3 < progress.have_bytes < TOTAL, "the unfinished shard counts"
    assert progress.line.startswith("Downloading [model-00002-of-00003.safetensors]"), progress.line
    assert {found.pid for found in find_marked(place.label)} >= set(pids)

    assert first.stop() == ()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert find_marked(place.label) == []
    assert "model-00002-of-00003.safetensors" in gaps_of(inspect_weights(str(place.model)))

    (place.record / "hold").unlink()
    assert finish(place.start()).exit_code == 0
    begins = {call["shard"]: call["begins_at"] for call in place.calls() if "shard" in call}
    assert begins["model-00002-of-00003.safetensors"] > 500_000, "not from the beginning"
    assert gaps_of(inspect_weights(str(place.model))) == ""


def test_it_is_stopped_when_its_owner_is_killed(place):
    (place.record / "hold").touch()
    program = f"""
import os, signal
from pathlib import Path
from raylaunch.node.model.download import Download
folder, log = {str(place.model)!r}, Path({str(place.log)!r})
argv = ({str(HUB / "modelscope")!r}, "download", "--model", "a/b", "--local_dir", folder)
Download(argv, Path(folder), log, os.environ, label={place.label!r}, number=0).start()
print("up", flush=True)
signal.pause()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], env=place.env, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout.readline() == "up\n"
        pids = place.await_hold()
        handles = [psutil.Process(pid) for pid in pids]
        owner.kill()
    gone, left = psutil.wait_procs(handles, timeout=DEADLINE_S)
    assert not left
    assert len(gone) == 2


def test_a_second_download_into_the_same_folder_is_refused_until_the_first_has_stopped(place):
    (place.record / "hold").touch()
    first = place.start()
    place.await_hold()
    with pytest.raises(NodeError, match="another download into"):
        place.start()
    first.stop()
    (place.record / "hold").unlink()
    assert finish(place.start()).exit_code == 0


def test_the_output_of_a_failed_program_is_reported(place):
    (place.record / "fail").touch()
    progress = finish(place.start())
    assert progress.failed
    assert progress.exit_code == 1
    assert progress.tail[-1] == "ERROR: connection reset by the hub"
    assert progress.log == str(place.log)


def test_a_program_that_cannot_be_started_is_a_failure(place, tmp_path):
    one = Download(
        [str(tmp_path / "none"), "x"],
        place.model,
        place.log,
        place.env,
        label=place.label,
        number=0,
    )
    one.start()
    place.started.append(one)
    progress = finish(one)
    assert progress.failed
    assert "No such file" in progress.error


def test_a_disk_without_room_is_refused_before_anything_is_started(place):
    with pytest.raises(NodeError, match="still to come"):
        place.start(needed=1 << 60)
    assert not (place.record / "calls").exists()


def test_a_folder_that_cannot_be_made_is_refused(place):
    place.model.parent.write_text("a file")
    with pytest.raises(NodeError, match="cannot be started"):
        place.start()


def test_a_file_made_in_full_size_ahead_has_only_what_was_written(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(100 << 20)
        file.write(bytes(8192))
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "part").write_bytes(bytes(4096))
    assert 8192 + 4096 <= written_bytes(tmp_path) < 1 << 20


def test_programs_are_searched_on_the_path_and_beside_python(tmp_path):
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


def test_what_a_program_draws_cannot_move_the_cursor(place):
    words = [
        sys.executable,
        "-S",
        "-c",
        r"print('\x1b[2K\x1b[1A\x1b[32m 45%|\u2588\u2588  | \x07 of 3\x1b[0m')",
    ]
    one = Download(words, place.model, place.log, place.env, label=place.label, number=0)
    one.start()
    place.started.append(one)
    assert finish(one).line == "45%|\u2588\u2588  |  of 3"


def test_the_lock_is_no_file_of_the_model(place):
    finish(place.start())
    assert (place.model / LOCK).exists()
    assert LOCK not in inspect_weights(str(place.model)).files


def test_a_link_in_the_place_of_the_lock_is_not_followed(place, tmp_path):
    place.model.mkdir(parents=True)
    (place.model / LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NodeError, match="cannot be started"):
        place.start()
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
