"""`diagnose` reads every kind of log: compressed, rotated, huge, several in a folder, stdin."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import tracemalloc
from pathlib import Path

import pytest

from raylaunch import api
from raylaunch.api import log_folder, log_input, log_streams
from raylaunch.errors import NodeError

PORT = "(APIServer pid=1) ERROR 11-23 10:16:{0:02} [x.py:1] OSError: [Errno 98] Address already in use\n"
LOST = "[rank0]: hccl fftsplus task timeout occurred, timeout=1836s\n"
QUIET = "(APIServer pid=1) INFO 11-23 10:15:00 [loggers.py:257] nothing to report\n"
BIND = (
    "[ERROR] HCCP(4210,python3):2026-11-23-10:16:01.070.463 [network.cc:64] EJ0003: [PID: 4210] "
    "2026-11-23-10:16:01.070.463 Failed to bind the IP port. Reason: The IP address and port have been "
    "bound already.\n"
)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYLAUNCH_HOME", str(tmp_path / "home"))
    for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH"):
        monkeypatch.delenv(name, raising=False)
    # A documentation address: no test asks a cluster.
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:1")
    return tmp_path / "home"


COMPRESS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "log": bytes}


@pytest.mark.parametrize("kind", COMPRESS)
def test_a_compressed_log_is_read_whatever_its_name(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(log_input, "WHOLE_BYTES", 10_000)
    data = (QUIET * 5000 + PORT.format(7)).encode()
    # Two members: `cat a.gz b.gz` and a logger that appends make such files.
    half = data.index(b"\n", len(data) // 2) + 1
    path = tmp_path / "server"
    path.write_bytes(COMPRESS[kind](data[:half]) + COMPRESS[kind](data[half:]))
    found = api.diagnose(str(path))
    assert (found.id, found.line_number) == ("port-in-use", 5001)
    assert api.diagnose_log(io.BytesIO(path.read_bytes()), "stdin").line_number == 5001


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_copy_that_broke_off_is_read_as_far_as_it_goes(tmp_path, kind):
    noise = b"".join(b"(W pid=1) INFO: %d\n" % (n * 7919 % 10007) for n in range(4000))
    whole = COMPRESS[kind](PORT.format(7).encode() + noise)
    path = tmp_path / f"a.log.{kind}"
    path.write_bytes(whole + whole[: len(whole) - 100])
    found = api.diagnose(str(path))
    assert (found.id, found.line_number) == ("port-in-use", 1)
    assert "is damaged after" in found.detail


def test_a_file_that_decompresses_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(log_streams, "MAX_DECOMPRESSED_BYTES", 4 << 20)
    path = tmp_path / "bomb.log"
    path.write_bytes(gzip.compress(b"\0" * (5 << 20)))
    with pytest.raises(NodeError, match="decompresses to more than"):
        api.diagnose(str(path))


def test_a_file_that_asks_for_much_memory_to_be_decompressed_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(log_streams, "LZMA_MEMORY_BYTES", 1 << 20)
    path = tmp_path / "bomb.log"
    path.write_bytes(lzma.compress(PORT.format(7).encode() * 9, preset=9))
    assert api.diagnose(str(path)) is None


def test_zstd_without_its_library_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    path = tmp_path / "a.log.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd rest")
    with pytest.raises(NodeError) as caught:
        api.diagnose(str(path))
    assert "zstd -dc" in caught.value.todo


def huge_logs():
    random = __import__("random").Random(1)
    yield "zeros", b"\0" * (32 << 20)
    yield "random bytes", random.randbytes(4 << 20)
    yield "one line", b"x" * (32 << 20)
    yield "no level", b"a line that names no level and no time\n" * (6 << 20 >> 5)


@pytest.mark.parametrize(("name", "data"), list(huge_logs()), ids=lambda part: str(part)[:12])
def test_a_huge_log_of_any_content_needs_bounded_memory(name, data, monkeypatch):
    # A tenth of what is kept by default: the bound is in proportion, and the test is quick.
    monkeypatch.setattr(log_input, "KEPT_BYTES", 512 << 10)
    monkeypatch.setattr(log_input, "WHOLE_BYTES", 256 << 10)
    source = io.BytesIO(data + b"\n" + PORT.format(7).encode())
    tracemalloc.start()
    try:
        found = api.diagnose_log(source, "log")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found is not None
    assert found.id == "port-in-use"
    assert found.line_number == data.count(b"\n") + 2
    assert peak < 40 << 20, f"{peak >> 20} MiB"


def plog(folder: Path, pid: int, time: str, text: str) -> None:
    path = folder / "ascend" / "log" / "debug" / "plog" / f"plog-{pid}_{time}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_folder_of_several_servers_has_one_root(tmp_path):
    (tmp_path / "node0").mkdir()
    (tmp_path / "node1").mkdir()
    (tmp_path / "node0" / "vllm.log").write_text(QUIET + PORT.format(30))
    (tmp_path / "node1" / "vllm.log").write_text(QUIET * 4 + PORT.format(12))
    (tmp_path / "node1" / "model.safetensors").write_bytes(b"ERROR")
    found = api.diagnose(str(tmp_path))
    assert (found.file, found.line_number) == ("node1/vllm.log", 5)
    assert "failures after it in node0/vllm.log" in found.detail


def test_a_plog_tree_is_read_beside_the_console_and_its_years_fit(tmp_path):
    (tmp_path / "console.log").write_text(QUIET + LOST.replace("[rank0]: ", "11-23 10:47:00 "))
    plog(tmp_path, 4210, "20261123101500123", "[INFO] HCCL(4210,python3): fine\n" * 3 + BIND)
    plog(tmp_path, 4211, "20261123101500456", "[INFO] HCCL(4211,python3): fine\n")
    found = api.diagnose(str(tmp_path))
    assert found.file.endswith("plog-4210_20261123101500123.log")
    assert found.line_number == 4
    assert "EJ0003" in found.cause + found.id


def test_rotated_files_are_one_log_in_the_order_of_their_writing(tmp_path):
    (tmp_path / "vllm.log").write_text(QUIET)
    (tmp_path / "vllm.log.1").write_text(QUIET + PORT.format(20))
    (tmp_path / "vllm.log.2.gz").write_bytes(gzip.compress((QUIET * 2).encode()))
    (tmp_path / "vllm.log.10").write_text(QUIET * 3)
    (one,) = log_folder.find_logs(tmp_path).logs
    names = [path.name for path in one.files]
    assert names == ["vllm.log.10", "vllm.log.2.gz", "vllm.log.1", "vllm.log"]
    found = api.diagnose(str(tmp_path))
    assert (found.file, found.line_number) == ("vllm.log.1", 2)


def test_the_files_of_one_process_of_cann_are_one_log(tmp_path):
    for time in ("20261123101500123", "20261123111500123"):
        plog(tmp_path, 4210, time, "x\n")
    plog(tmp_path, 421, "20261123101500123", "x\n")
    logs = log_folder.find_logs(tmp_path).logs
    assert sorted(len(log.files) for log in logs) == [1, 2]


def test_a_file_that_cannot_be_read_is_named_and_the_others_count(tmp_path):
    (tmp_path / "a.log").write_text(PORT.format(9))
    (tmp_path / "b.log.zst").write_bytes(b"\x28\xb5\x2f\xfd rest")
    found = api.diagnose(str(tmp_path))
    assert found.file == "a.log"
    assert "b.log.zst was not read" in found.detail


def test_links_and_pipes_in_a_folder_are_not_followed(tmp_path):
    (tmp_path / "logs").mkdir()
    os.mkfifo(tmp_path / "logs" / "pipe.log")
    (tmp_path / "logs" / "link.log").symlink_to("/proc/kmsg")
    (tmp_path / "logs" / "loop").symlink_to(tmp_path)
    with pytest.raises(NodeError, match="holds no logs"):
        api.diagnose(str(tmp_path / "logs"))


def test_of_too_many_files_the_newest_are_read(tmp_path):
    for age in range(5):
        path = tmp_path / f"{age}.log"
        path.write_text("x\n")
        os.utime(path, (1000 - age, 1000 - age))
    found = log_folder.find_logs(tmp_path, max_files=2)
    assert [log.name for log in found.logs] == ["0.log", "1.log"]
    assert found.left_out == 3


def site(home: Path, name: str, text: str) -> None:
    (home / "signatures.d").mkdir(parents=True, exist_ok=True)
    (home / "signatures.d" / name).write_text(text)


SITE = """
signatures:
  - id: site-licence
    pattern: 'licence server (\\S{1,80}) does not answer'
    level: fatal
    class: transient
    cause: The licence server {0} does not answer.
    remedy: Ask the platform team.
    sample: 'RuntimeError: licence server lic1 does not answer'
noise:
  - pattern: 'metrics exporter: retrying'
    sample: 'ERROR metrics exporter: retrying in 5 s'
"""


def test_a_signature_of_the_site_is_found_and_its_noise_is_not(tmp_path, home):
    log = tmp_path / "a.log"
    noise = "ERROR metrics exporter: retrying in 5 s\n"
    log.write_text(noise)
    assert api.diagnose(str(log)).id == "unexplained-errors"
    site(home, "site.yaml", SITE)
    assert api.diagnose(str(log)) is None
    log.write_text(noise + "RuntimeError: licence server lic7 does not answer\n")
    found = api.diagnose(str(log))
    assert (found.id, found.cause) == ("site-licence", "The licence server lic7 does not answer.")
    assert found.source == "this site's site.yaml"


def test_a_broken_file_of_the_site_is_named_and_the_others_count(tmp_path, home, caplog):
    site(home, "a-broken.yaml", "signatures: [")
    site(home, "b-good.yaml", SITE)
    log = tmp_path / "a.log"
    log.write_text("RuntimeError: licence server lic7 does not answer\n")
    assert api.diagnose(str(log)).id == "site-licence"
    assert "a-broken.yaml: line" in caplog.text


def test_check_signatures_names_what_is_wrong(cli, home):
    assert cli("diagnose", "--check-signatures").stdout.startswith("no file: 0 signatures")
    site(home, "site.yaml", SITE)
    shown = cli("diagnose", "--check-signatures", "-o", "json")
    assert json.loads(shown.stdout)["signatures"] == ["site-licence"]
    site(home, "twin.yaml", SITE)
    result = cli("diagnose", "--check-signatures")
    assert result.exit_code == 11
    assert "twin.yaml: site-licence: another signature has this id" in result.stderr
    assert cli("diagnose").exit_code == 2


TABLE = {
    "error_info_list": [
        {
            "errClass": "HCCP Errors",
            "ErrCode": "EJ0042",
            "ErrMessage": "Failed to bind the IP port. Reason: %s",
            "suggestion": {
                "Possible Cause": "N/A",
                "Solution": "Use the port tool of this release.",
            },
        }
    ]
}


def test_the_table_of_the_cann_on_this_node_wins(tmp_path, monkeypatch, caplog):
    log = tmp_path / "a.log"
    log.write_text(BIND.replace("EJ0003", "EJ0042"))
    ours = api.diagnose(str(log))
    assert ours.id == "cann-EJ0042"
    place = tmp_path / "cann" / "runtime" / "conf" / "error_manager" / "error_code.json"
    place.parent.mkdir(parents=True)
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(tmp_path / "cann"))
    place.write_text("{")
    assert api.diagnose(str(log)) == ours
    assert "CANN's own error codes are ignored" in caplog.text
    place.write_text(json.dumps(TABLE))
    found = api.diagnose(str(log))
    assert found.remedy == "CANN on this node suggests: Use the port tool of this release."
    assert found.source == "the node's own CANN: error_code.json"
