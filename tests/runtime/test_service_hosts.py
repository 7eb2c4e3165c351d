"""`service install|status|remove` on hosts. `ssh` runs its last word here, in a folder per host."""

from __future__ import annotations

import getpass
import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from raylaunch import api
from raylaunch.errors import HeadError, NodeError, RecipeError, UnknownDeploymentError
from raylaunch.recipe.catalog import read
from raylaunch.render.ray_cluster import render_cluster
from raylaunch.runtime.ssh import service_hosts, ssh_client

HEAD, WORKER = "192.0.2.10", "192.0.2.11"
SSH = """#!/bin/bash
while [ "$1" != -- ]; do shift; done
host=${2#*@}
[ ! -e "$HOME/gone-$host" ] || { echo "connect to host $host: No route to host" >&2; exit 255; }
cd "$HOME/hosts/$host" && exec env -i HOME="$HOME" PATH="$PATH" bash -c "${!#}"
"""
SUDO = """#!/bin/bash
shift; exec "$@"
"""
SYSTEMCTL = """#!/bin/bash
echo "${PWD##*/} $*" >> "$HOME/calls"
if [ -e "$HOME/fail-${PWD##*/}-$1" ]; then echo "Failed to $1" >&2; exit 1; fi
[ "$1" != show ] || cat "$HOME/show"
"""
DOCKER = """#!/bin/bash
echo "${PWD##*/} docker $*" >> "$HOME/calls"
[ "$1" != ps ] || echo 0123
"""
RAY_UNIT, OWN_UNIT = "raylaunch-cluster-a2-dual.service", "raylaunch-deployment-prod.service"
SHOW = """\
Id=raylaunch-cluster-a2-dual.service
LoadState=loaded
UnitFileState=enabled
ActiveState=active
SubState=running
StatusText=
NRestarts=2

Id=raylaunch-deployment-prod.service
LoadState=loaded
UnitFileState=enabled
ActiveState=activating
SubState=start
StatusText=waiting for 192.0.2.11 to join the Ray cluster
NRestarts=0
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    programs = {"ssh": SSH, "sudo": SUDO, "systemctl": SYSTEMCTL, "docker": DOCKER}
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    for host in (HEAD, WORKER):
        for folder in ("run/systemd/system", "etc/systemd/system"):
            (tmp_path / "hosts" / host / folder).mkdir(parents=True)
    (tmp_path / "show").write_text(SHOW)
    token = tmp_path / ".raylaunch" / "cluster" / "a2-dual" / "token"
    token.parent.mkdir(parents=True)
    token.write_text("t0ken")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(service_hosts, "ROOT", ".")
    let_stop_answer(monkeypatch, tmp_path, 0)
    return tmp_path


def let_stop_answer(monkeypatch, home: Path, answer: int | Exception) -> None:
    """Have `raylaunch` on the head exit with a code, or fail to run."""

    def run_on_head(file, words, given, env):
        with (home / "calls").open("a") as stream:
            stream.write(f"{HEAD} raylaunch {' '.join(words)}\n")
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(ssh_client, "run_on_head", run_on_head)


@pytest.fixture(params=["bare", "container"])
def cluster(request, home):
    return write_cluster(home, bare=request.param == "bare")


@pytest.fixture
def bare(home):
    return write_cluster(home, bare=True)


def write_cluster(home: Path, *, bare: bool) -> Path:
    file = home / "c.yaml"
    user = getpass.getuser()
    file.write_text(
        render_cluster(read("a2-dual"), head=HEAD, workers=[WORKER], ssh_user=user, bare=bare)
    )
    return file


def install(file, **given):
    return api.install_service("a2-dual", cluster=file, deployment="prod", **given)


def files_on(home: Path, host: str) -> dict[str, str]:
    """Return the files of a host but for the code, text by path."""
    folder = home / "hosts" / host
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "/code/" not in str(path)
    }


def calls(home: Path) -> list[str]:
    return (home / "calls").read_text().splitlines() if (home / "calls").exists() else []


def home_on(home: Path, host: str) -> Path:
    own = pwd.getpwuid(os.getuid()).pw_dir
    return home / "hosts" / host / own.lstrip("/")


def test_every_host_has_its_units_enabled_and_started(home, cluster):
    services = install(cluster)
    assert [one.host for one in services] == [HEAD, WORKER]
    for one in services:
        found = files_on(home, one.host)
        for file in one.files:
            assert found[file.path.lstrip("/")] == file.text
            path = home / "hosts" / one.host / file.path.lstrip("/")
            assert path.stat().st_mode & 0o777 == file.mode
        started = [line for line in calls(home) if line.startswith(f"{one.host} ")]
        assert started == [
            f"{one.host} daemon-reload",
            f"{one.host} enable --quiet {' '.join(one.units)}",
            *(
                f"{one.host} {'start' if unit == RAY_UNIT else 'restart'} --no-block {unit}"
                for unit in one.units
            ),
        ]


def test_the_head_gets_this_raylaunch_and_every_host_the_token(home, bare):
    install(bare)
    code = home / "hosts" / HEAD / "etc/raylaunch/deployments/prod/code"
    done = subprocess.run(
        [sys.executable, "-c", "import raylaunch.cli.app, raylaunch; print(raylaunch.__file__)"],
        cwd="/",
        env={"PYTHONPATH": str(code), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(code / "raylaunch" / "__init__.py")
    for host in (HEAD, WORKER):
        token = home_on(home, host) / ".raylaunch/cluster/a2-dual/token"
        assert token.read_text() == "t0ken"
        assert token.stat().st_mode & 0o777 == 0o600


def test_nothing_temporary_is_left(home, bare):
    install(bare)
    install(bare)
    for host in (HEAD, WORKER):
        assert sorted(
            path.name for path in (home / "hosts" / host / "etc/raylaunch").iterdir()
        ) in (
            ["clusters"],
            ["clusters", "deployments"],
        )


@pytest.mark.parametrize("problem", ["gone", "no-systemd", "foreign"])
def test_a_host_that_cannot_have_it_is_found_before_any_host_is_touched(home, bare, problem):
    worker = home / "hosts" / WORKER
    if problem == "gone":
        (home / f"gone-{WORKER}").touch()
    elif problem == "no-systemd":
        (worker / "run/systemd/system").rmdir()
    else:
        (worker / "etc/systemd/system" / RAY_UNIT).write_text("[Unit]\nDescription=mine\n")
    before = files_on(home, WORKER)
    with pytest.raises((HeadError, NodeError), match=WORKER):
        install(bare)
    assert files_on(home, HEAD) == {}
    assert files_on(home, WORKER) == before
    assert calls(home) == []


@pytest.mark.parametrize("action", ["enable", "daemon-reload"])
def test_a_failure_on_one_host_takes_back_the_others(home, bare, action):
    (home / f"fail-{WORKER}-{action}").touch()
    with pytest.raises(NodeError, match=WORKER):
        install(bare)
    tokens = ".raylaunch/cluster/a2-dual/token"
    for host in (HEAD, WORKER):
        assert [path for path in files_on(home, host) if not path.endswith(tokens)] == []
    assert f"{HEAD} disable --quiet {OWN_UNIT}" in calls(home)


def test_a_failed_second_install_leaves_the_first_one(home, bare):
    install(bare)
    before = {host: files_on(home, host) for host in (HEAD, WORKER)}
    (home / "calls").unlink()
    (home / f"fail-{WORKER}-enable").touch()
    with pytest.raises(NodeError, match=WORKER):
        install(bare, set=["args.max-num-seqs=7"])
    assert {host: files_on(home, host) for host in (HEAD, WORKER)} == before
    assert not [line for line in calls(home) if "disable" in line]


def test_secrets_are_in_one_file_of_the_head_and_nowhere_else(home, bare, monkeypatch):
    recipe = home / "mine.yaml"
    recipe.write_text("extends: a2-dual\nsecrets: [MY_KEY]\n")
    with pytest.raises(RecipeError, match="MY_KEY"):
        api.install_service(str(recipe), cluster=bare)
    monkeypatch.setenv("MY_KEY", "s3cret")
    api.install_service(str(recipe), cluster=bare, deployment="prod")
    holders = [
        (host, path)
        for host in (HEAD, WORKER)
        for path, text in files_on(home, host).items()
        if "s3cret" in text
    ]
    assert holders == [(HEAD, "etc/raylaunch/deployments/prod/environment")]
    file = home / "hosts" / HEAD / holders[0][1]
    assert file.stat().st_mode & 0o777 == 0o600
    assert "etc/raylaunch/deployments/prod/recipe/mine.yaml" in files_on(home, HEAD)


def test_a_cluster_without_a_token_is_refused(home, bare):
    (home / ".raylaunch/cluster/a2-dual/token").unlink()
    with pytest.raises(NodeError, match="token"):
        install(bare)
    assert files_on(home, HEAD) == {}


def test_status_has_what_systemd_says_of_each_unit(home, bare):
    states = api.service_status("prod", cluster=bare)
    rays, own = states[HEAD]
    assert (rays.name, rays.active, rays.restarts, rays.is_up) == (
        RAY_UNIT,
        "active (running)",
        2,
        True,
    )
    assert own.text == "waiting for 192.0.2.11 to join the Ray cluster"
    assert not own.is_up


def test_remove_leaves_no_unit_and_no_file(home, cluster):
    install(cluster)
    (home / "calls").unlink()
    api.remove_service("prod", cluster=cluster)
    tokens = ".raylaunch/cluster/a2-dual/token"
    for host in (HEAD, WORKER):
        assert [path for path in files_on(home, host) if not path.endswith(tokens)] == []
    stopped = [line for line in calls(home) if "disable" in line or "raylaunch stop" in line]
    assert stopped == [
        f"{HEAD} raylaunch stop prod",
        f"{HEAD} disable --now --quiet {OWN_UNIT}",
        f"{HEAD} disable --now --quiet {RAY_UNIT}",
        f"{WORKER} disable --now --quiet {RAY_UNIT}",
    ]
    has_container = "container_name" in cluster.read_text()
    assert (f"{WORKER} docker rm -f 0123" in calls(home)) == has_container


def test_ray_stays_while_another_service_needs_it(home, bare):
    install(bare)
    api.install_service("a2-dual", cluster=bare, deployment="other")
    assert api.remove_service("prod", cluster=bare) == [OWN_UNIT]
    assert f"{HEAD} raylaunch stop prod" not in calls(home), "its servers keep their Ray"
    assert f"etc/systemd/system/{RAY_UNIT}" in files_on(home, WORKER)
    assert f"etc/systemd/system/{OWN_UNIT}" not in files_on(home, HEAD)


@pytest.mark.parametrize(
    ("answer", "note"),
    [
        (0, ""),
        (UnknownDeploymentError.exit_code, ""),
        (5, "exited with 5"),
        (HeadError("no Python with Ray"), "no Python with Ray"),
    ],
)
def test_a_deployment_that_cannot_be_stopped_does_not_keep_its_service(
    home, bare, monkeypatch, answer, note
):
    install(bare)
    let_stop_answer(monkeypatch, home, answer)
    notes = []
    assert len(api.remove_service("prod", cluster=bare, on_note=notes.append)) == 3
    assert (note in notes[0]) if note else not notes


def test_an_interrupt_of_the_stop_removes_nothing(home, bare, monkeypatch):
    install(bare)
    let_stop_answer(monkeypatch, home, ssh_client.INTERRUPTED)
    with pytest.raises(KeyboardInterrupt):
        api.remove_service("prod", cluster=bare)
    assert f"etc/systemd/system/{OWN_UNIT}" in files_on(home, HEAD)


def test_a_unit_of_that_name_that_is_not_ours_is_not_removed(home, bare):
    file = home / "hosts" / HEAD / "etc/systemd/system" / OWN_UNIT
    file.write_text("[Unit]\nDescription=mine\n")
    with pytest.raises(NodeError, match="not written by raylaunch"):
        api.remove_service("prod", cluster=bare)
    assert file.exists()


def test_the_service_of_an_embedded_cluster_is_one_unit_of_this_machine(home, monkeypatch):
    monkeypatch.chdir(home / "hosts" / HEAD)
    api.install_service("local-dual")
    unit = "raylaunch-deployment-local-dual.service"
    assert set(files_on(home, HEAD)) == {f"etc/systemd/system/{unit}"}
    assert f"{HEAD} restart --no-block {unit}" in calls(home)
    api.remove_service("local-dual")
    assert files_on(home, HEAD) == {}


def test_the_command_line_shows_units_and_exits_with_8_while_one_does_not_run(home, bare):
    words = ["service", "status", "prod", "--cluster", str(bare), "-o", "json"]
    code = (
        "import sys; from raylaunch.runtime.ssh import service_hosts; service_hosts.ROOT = '.'\n"
        "from raylaunch.cli.app import program; program()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 8, done.stderr
    assert json.loads(done.stdout)[0]["host"] == HEAD
