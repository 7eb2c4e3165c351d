"""cluster: the file for `ray up`, and its token."""

from __future__ import annotations

import shlex
import stat
from pathlib import Path

import pytest
import yaml

HOSTS = ("--head", "192.0.2.20", "--worker", "192.0.2.21", "--ssh-user", "ray")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def mode(path: Path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode))


def test_it_writes_a_file_for_ray_up(cli, tmp_path):
    result = cli(
        "cluster", "a2-dual", *HOSTS, "--ssh-key", "~/.ssh/key", "-o", str(tmp_path / "a.yaml")
    )
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'a.yaml'}\n")
    config = yaml.safe_load((tmp_path / "a.yaml").read_text())
    assert config["provider"] == {
        "type": "local",
        "head_ip": "192.0.2.20",
        "worker_ips": ["192.0.2.21"],
    }
    assert config["auth"] == {"ssh_user": "ray", "ssh_private_key": "~/.ssh/key"}
    assert config["docker"]["container_name"] == "minimax2_5"


def test_the_file_says_how_it_was_made(cli):
    first = cli(
        "cluster", "a2-dual", *HOSTS, "--bare", "--name", "lab", "--set", "network.http_port=12000"
    ).stdout
    command = next(line for line in first.splitlines() if "raylaunch cluster a2-dual" in line)
    again = cli(*shlex.split(command.removeprefix("#"))[1:-2]).stdout
    assert again == first
    assert "--min-worker-port=12001" in first


def test_without_a_file_it_prints(cli):
    result = cli("cluster", "a2-dual", *HOSTS, "--bare", "--name", "lab")
    assert yaml.safe_load(result.stdout)["cluster_name"] == "lab"


def test_the_token_is_made_once_and_closed(cli, home):
    cli("cluster", "a2-dual", *HOSTS)
    token = home / ".raylaunch" / "cluster" / "a2-dual" / "token"
    first = token.read_text()
    assert len(first) == 64
    assert (mode(token), mode(token.parent)) == ("0o600", "0o700")
    token.chmod(0o644)
    result = cli("cluster", "a2-dual", *HOSTS)
    assert (token.read_text(), mode(token)) == (first, "0o600")
    assert first not in result.output
    cli("cluster", "a2-dual", *HOSTS, "--name", "lab")
    assert (token.parent.parent / "lab" / "token").read_text() != first
    assert [path.name for path in token.parent.iterdir()] == ["token"]


def test_a_token_can_be_given(cli, home, tmp_path):
    (tmp_path / "mine").write_text("secret-of-mine\n")
    assert cli("cluster", "a2-dual", *HOSTS, "--token", str(tmp_path / "mine")).exit_code == 0
    assert (home / ".raylaunch" / "cluster" / "a2-dual" / "token").read_text() == "secret-of-mine"


@pytest.mark.parametrize("text", [None, "\n"])
def test_a_token_that_is_none_is_refused(cli, tmp_path, text):
    if text is not None:
        (tmp_path / "mine").write_text(text)
    result = cli("cluster", "a2-dual", *HOSTS, "--token", str(tmp_path / "mine"))
    assert result.exit_code == 11
    assert str(tmp_path / "mine") in result.stderr


def test_a_refused_cluster_leaves_nothing(cli, home, tmp_path):
    result = cli(
        "cluster",
        "a2-dual",
        "--head",
        "192.0.2.20",
        "--ssh-user",
        "ray",
        "-o",
        str(tmp_path / "a.yaml"),
    )
    assert result.exit_code == 12
    assert "needs 2 hosts, and 1 are given" in result.stderr
    assert not (tmp_path / "a.yaml").exists()
    assert not home.exists()


def test_it_overwrites_its_own_file_and_no_other(cli, tmp_path):
    own, foreign = tmp_path / "own.yaml", tmp_path / "foreign.yaml"
    foreign.write_text("precious: true\n")
    assert [cli("cluster", "a2-dual", *HOSTS, "-o", str(own)).exit_code for _ in range(2)] == [0, 0]
    assert cli("cluster", "a2-dual", *HOSTS, "-o", str(foreign)).exit_code == 11
    assert foreign.read_text() == "precious: true\n"
