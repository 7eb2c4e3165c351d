"""Settings, certificates, files and sockets of a gateway before it starts."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from certificates import make_certificate
from pydantic import ValidationError

from raylaunch.errors import BusyError, NodeError
from raylaunch.gateway.child_process import AdoptedProcess
from raylaunch.gateway.gateway_client import gateway_options
from raylaunch.gateway.gateway_messages import GatewayOptions, hash_key, read_member, read_options
from raylaunch.gateway.haproxy_config import HaproxyFiles, haproxy_config, keys_map
from raylaunch.gateway.haproxy_files import is_current, write_files
from raylaunch.gateway.haproxy_process import find_haproxy
from raylaunch.gateway.keeper_socket import listen_for_clients, lock_folder
from raylaunch.gateway.tls_certificate import read_certificate
from raylaunch.gateway.unix_socket import connect_unix, is_trusted, listen_unix
from raylaunch.node.process.guard import read_process
from raylaunch.recipe.gateway_settings import INSTALL_HAPROXY, Gateway


def test_a_key_without_a_value_is_named():
    settings = Gateway(api_keys=("KEY_ONE", "KEY_TWO"))
    with pytest.raises(NodeError, match="KEY_TWO"):
        gateway_options(settings, "127.0.0.1", {"KEY_ONE": "a", "KEY_TWO": ""})


@pytest.mark.parametrize(
    "wrong",
    [
        {"policy": "random"},
        {"rate_limit_per_key": 5},
        {"api_keys": ["not a name"]},
        {"sticky_header": "a b"},
        {"hold_requests": 0},
        {"port": 0},
        {"tls": {"certificate": "a"}},
        {"unknown": 1},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        Gateway.model_validate(wrong)


def test_options_hold_no_key_but_its_hash():
    settings = Gateway(api_keys=("KEY",), host="0.0.0.0")
    options = gateway_options(settings, "192.0.2.1", {"KEY": "geheim"}, server_key="inner")
    assert options.key_hashes == {hash_key("geheim"): "KEY"}
    assert (options.address, gateway_options(Gateway(), "192.0.2.1", {}).address) == (
        "0.0.0.0",
        "192.0.2.1",
    )
    assert "geheim" not in str(options.as_json())
    assert "inner" not in repr(options)
    assert read_options(options.as_json()) == options


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "a", "url": "http://a", "state": "dead"},
        {"id": "a", "url": "a:80"},
        {"id": "a", "url": "https://a"},
    ],
)
def test_a_member_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match="member a"):
        read_member(wrong)


def test_a_certificate_is_read(tmp_path):
    certificate, key = make_certificate(tmp_path, "127.0.0.1", days=5)
    found = read_certificate(certificate, key)
    assert found.problem is None
    assert found.expires is not None
    assert 4.9 < (found.expires - time.time()) / 86400 < 5.1


def test_wrong_certificates_are_told_apart(tmp_path):
    certificate, key = make_certificate(tmp_path / "one", "127.0.0.1")
    _, other = make_certificate(tmp_path / "two", "127.0.0.1")
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    assert read_certificate(certificate, other).problem == "key-mismatch"
    assert read_certificate(text, key).problem == "unreadable"
    assert read_certificate(certificate, tmp_path / "none").problem == "missing"


@pytest.mark.parametrize(("shift_days", "problem"), [(-10, "expired"), (10, "not-yet-valid")])
def test_a_certificate_of_another_time_is_found(tmp_path, shift_days, problem):
    begins = datetime.now(UTC) + timedelta(days=shift_days)
    certificate, key = make_certificate(tmp_path, "127.0.0.1", begins=begins)
    assert read_certificate(certificate, key).problem == problem


def test_the_configuration_has_only_what_was_asked_for(tmp_path):
    files = HaproxyFiles(tmp_path)
    plain = haproxy_config(GatewayOptions(), files, 7)
    assert "bind fd@7\n" in plain
    assert "map_str" not in plain
    assert "stick-table" not in plain
    full = GatewayOptions(certificate="c", key_hashes={"00": "KEY"}, rate_limit_per_key=9)
    config = haproxy_config(full, files, 7)
    for part in ("ssl crt", "map_str", "sc_http_req_rate(0) gt 9", "ssl-min-ver TLSv1.2"):
        assert part in config
    assert keys_map({"b": "TWO", "a": "ONE"}) == "a ONE\nb TWO\n"


def test_a_missing_haproxy_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NodeError) as caught:
        find_haproxy()
    assert caught.value.todo == INSTALL_HAPROXY
    monkeypatch.undo()
    assert find_haproxy().is_file()


def test_a_taken_port_gives_the_next_and_an_unknown_address_an_error():
    first = listen_for_clients("127.0.0.1", 20000)
    with first, listen_for_clients("127.0.0.1", first.getsockname()[1]) as second:
        assert second.getsockname()[1] > first.getsockname()[1]
    with pytest.raises(NodeError):
        listen_for_clients("192.0.2.1", 20000)


def test_a_folder_of_any_length_has_its_sockets(tmp_path):
    folder = tmp_path / ("x" * 120)
    os.close(lock_folder(folder))
    with listen_unix(folder / "a.sock") as listener:
        listener.settimeout(60)
        with connect_unix(folder / "a.sock", 60) as client, listener.accept()[0] as server:
            assert is_trusted(client)
            assert is_trusted(server)
    with pytest.raises(OSError, match="refused"):
        connect_unix(folder / "a.sock", 60)
    config = haproxy_config(GatewayOptions(certificate="c"), HaproxyFiles(folder), 7)
    assert str(folder) not in config


def test_a_second_keeper_does_not_get_the_folder(tmp_path):
    lock = lock_folder(tmp_path)
    with pytest.raises(BusyError, match="another keeper"):
        lock_folder(tmp_path)
    os.close(lock)
    os.close(lock_folder(tmp_path))


def test_a_renewed_certificate_makes_the_configuration_another_one(tmp_path):
    certificate, key = make_certificate(tmp_path, "127.0.0.1")
    files = HaproxyFiles(tmp_path)
    options = GatewayOptions(certificate=str(certificate), key=str(key))
    assert not is_current(files, options, 7)
    write_files(files, options, 7)
    assert is_current(files, options, 7)
    assert is_current(files, replace(options, hold_s=5.0), 7), "of the relay alone"
    assert not is_current(files, replace(options, max_connections=9), 7)
    status = certificate.stat()
    os.utime(certificate, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert not is_current(files, options, 7)


@pytest.fixture
def sleeper() -> Iterator[int]:
    program = subprocess.Popen(["sleep", "600"])
    yield program.pid
    program.kill()
    program.wait()


async def test_an_adopted_process_is_awaited_and_signalled_without_being_a_child(sleeper):
    adopted = AdoptedProcess(read_process(sleeper))
    assert (adopted.pid, adopted.returncode) == (sleeper, None)
    adopted.send_signal(signal.SIGKILL)
    async with asyncio.timeout(60):
        await adopted.wait()
    assert adopted.returncode is not None
