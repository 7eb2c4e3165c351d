"""The units and scripts of a service: what systemd, bash and shellcheck make of them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from raylaunch.errors import ClusterFileError, NodeError, PlanError
from raylaunch.recipe.catalog import read
from raylaunch.recipe.cluster_yaml import read_cluster_file
from raylaunch.render.cluster_service import ServiceOrder, render_cluster_service
from raylaunch.render.host_service import FINAL_EXIT_CODES, deployment_unit
from raylaunch.render.local_service import render_local_service
from raylaunch.render.ray_cluster import render_cluster
from raylaunch.render.systemd_unit import command_line, environment_file, quote_word, render_unit

HEAD, WORKER = "192.0.2.10", "192.0.2.11"
CLUSTER_UNIT = "/etc/systemd/system/raylaunch-cluster-a2-dual.service"
DEPLOYMENT_UNIT = "/etc/systemd/system/raylaunch-deployment-prod.service"
RAY_SCRIPT = "/etc/raylaunch/clusters/a2-dual/ray.sh"
FOLLOW_SCRIPT = "/etc/raylaunch/deployments/prod/follow.sh"
NEEDS_SYSTEMD = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze here"
)
NEEDS_SHELLCHECK = pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck")


def cluster(*, bare, user="root"):
    text = render_cluster(read("a2-dual"), head=HEAD, workers=[WORKER], ssh_user=user, bare=bare)
    return read_cluster_file(text, "c.yaml")


def services(*, bare=True, sets=(), recipe_files=None, **changes):
    order = ServiceOrder("prod", "a2-dual", recipe_files or {}, sets)
    found = render_cluster_service(read("a2-dual"), order, replace(cluster(bare=bare), **changes))
    return {one.host: {file.path: file.text for file in one.files} for one in found}


def local(**given):
    values = {"python": sys.executable, "recipe": "local-dual", "user": "root", "environment": {}}
    return render_local_service(read("local-dual"), "local-dual", **{**values, **given})


@pytest.fixture(params=["bare", "container"])
def hosts(request):
    return services(bare=request.param == "bare")


def verify(folder: Path, units: dict[str, str]) -> str:
    """Return what `systemd-analyze verify` says of units, by file name."""
    for name, text in units.items():
        (folder / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", *[str(folder / name) for name in units]],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:"},
    )
    return done.stdout + done.stderr + ("" if done.returncode == 0 else f"{done.returncode}")


@NEEDS_SYSTEMD
def test_systemd_accepts_the_units_of_each_host(hosts, tmp_path):
    for host, files in hosts.items():
        units = {
            Path(path).name: text.replace("docker.service", "basic.target")
            for path, text in files.items()
            if path.endswith(".service")
        }
        (tmp_path / host).mkdir()
        assert verify(tmp_path / host, units) == ""


@NEEDS_SYSTEMD
def test_systemd_accepts_the_unit_of_an_embedded_cluster(tmp_path):
    found = local(environment={"PATH": '/opt/a b/100%:/usr/"bin"', "RAYLAUNCH_HOME": "/srv/$x"})
    assert verify(tmp_path, {found.units[0]: found.files[0].text}) == ""


def test_the_head_has_both_units_and_a_worker_the_one_of_ray(hosts):
    assert {CLUSTER_UNIT, DEPLOYMENT_UNIT, RAY_SCRIPT, FOLLOW_SCRIPT} == set(hosts[HEAD])
    assert {CLUSTER_UNIT, RAY_SCRIPT} == set(hosts[WORKER])


def test_a_restart_of_rays_unit_does_not_signal_guards(hosts):
    unit = hosts[WORKER][CLUSTER_UNIT]
    assert "\nKillMode=process\n" in unit
    assert "\nOOMPolicy=continue\n" in unit
    assert "\nRestart=always\n" in unit


def test_ray_waits_for_the_network_and_for_the_mounts_of_the_weights(hosts):
    unit = hosts[HEAD][CLUSTER_UNIT]
    assert "\nAfter=network-online.target" in unit
    mounts = unit.split("RequiresMountsFor=")[1].splitlines()[0].split()
    model = read("a2-dual").recipe.model.path
    assert any(model.startswith(mount) for mount in mounts)


def test_ray_is_started_in_the_foreground_without_the_autoscaler_of_ray_up(hosts):
    for host, files in hosts.items():
        script = files[RAY_SCRIPT]
        start = script.replace("\\\n", " ").split("exec ray start ")[1].splitlines()[0]
        assert "--block" in start.split()
        assert "autoscaling" not in start
        assert (f"--node-ip-address={HEAD}" in start) == (host == HEAD)
        assert "RAYLAUNCH_RAY_RESTARTS=systemd" in script


def test_what_a_restart_cannot_change_is_not_restarted(hosts):
    line = hosts[HEAD][DEPLOYMENT_UNIT].split("RestartPreventExitStatus=")[1].splitlines()[0]
    assert [int(word) for word in line.split()] == list(FINAL_EXIT_CODES)


def test_the_deployment_waits_for_each_host_by_name(hosts):
    script = hosts[HEAD][FOLLOW_SCRIPT]
    line = next(one for one in script.splitlines() if "-m raylaunch" in one)
    words = shlex.split(line)
    assert words[1:6] == ["$python", "-m", "raylaunch", "start", "a2-dual"]
    awaited = [after for word, after in pairwise(words) if word == "--await-host"]
    assert awaited == [HEAD, WORKER]


@NEEDS_SHELLCHECK
def test_shellcheck_finds_nothing_in_the_scripts(hosts, tmp_path):
    for files in hosts.values():
        for path, text in files.items():
            if path.endswith(".sh"):
                file = tmp_path / Path(path).name
                file.write_text(text)
                # Files of the host (SC109x), words that are split on purpose (SC2046, SC2086), a counter
                # that nothing reads (SC2034), `a && b || exit` (SC2015),
                # a mode of the deepest folder alone (SC2174).
                done = subprocess.run(
                    [
                        "shellcheck",
                        "-e",
                        "SC1090,SC1091,SC2015,SC2034,SC2046,SC2086,SC2174",
                        str(file),
                    ],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert done.stdout == ""


def test_a_setting_reaches_the_command_line_whatever_its_characters():
    setting = "args.x=$HOME 100% \"a\" 'b' `c` \\ é"
    script = services(sets=[setting])[HEAD][FOLLOW_SCRIPT]
    line = next(one for one in script.splitlines() if "-m raylaunch" in one)
    show = line.replace("exec $python", "printf '%s\\n'")
    done = subprocess.run(["bash", "-c", show], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == setting


def test_recipe_files_of_the_user_are_on_the_head_alone():
    found = services(recipe_files={"a2-dual": "extends: a2-dual\n"})
    path = "/etc/raylaunch/deployments/prod/recipe/a2-dual"
    assert found[HEAD][path] == "extends: a2-dual\n"
    assert path not in found[WORKER]
    assert f"raylaunch start {path} " in found[HEAD][FOLLOW_SCRIPT]


def test_a_file_with_a_container_and_no_image_is_refused():
    with pytest.raises(ClusterFileError, match="no image"):
        services(bare=False, image=None)


def test_too_few_hosts_are_refused():
    with pytest.raises(PlanError, match="needs 2 hosts"):
        services(workers=())


# -- the scripts of a container, run with a `docker` and a `systemd-notify` of the test ------------

DOCKER = """#!/bin/bash
printf '%s\\n' "$1" >> "$HOME/docker.calls"
case $1 in
  ps) [ -e "$HOME/made" ] && echo 0123; exit 0 ;;
  run) touch "$HOME/made"; printf '%s\\n' "$@" > "$HOME/docker.run" ;;
  start) ;;
  exec) shift; while [ "$1" != box ]; do
          [ "$1" = -e ] && { case $2 in *=*) export "$2" ;; esac; shift; }; shift; done
        shift; exec "$@" ;;
esac
"""
PROGRAM = """#!/bin/bash
printf '%s\\n' "$0 $*" >> "$HOME/programs"
"""
FOLLOWER = """#!/bin/bash
[ "$NOTIFY_SOCKET" = stdout ] || exit 99
echo 'sd_notify: STATUS=prod is ready, attempt 1'
echo 'a line of the table'
echo 'sd_notify: READY=1'
exit 7
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    programs = {"docker": DOCKER, "ray": PROGRAM, "systemd-notify": PROGRAM, "python3": FOLLOWER}
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        file = tmp_path / "bin" / name
        file.write_text(text)
        file.chmod(0o755)
    (tmp_path / ".bashrc").write_text(f"export PATH={tmp_path / 'bin'}:/usr/bin:/bin\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path


def run(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script, "script", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def lines_of(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.parametrize("path", [RAY_SCRIPT, FOLLOW_SCRIPT])
def test_a_stop_before_the_program_has_begun_is_not_ignored(home, path):
    (home / ".bashrc").write_text("echo begun; while true; do sleep 0.05; done\n")
    script = home / "script.sh"
    script.write_text(services()[HEAD][path])
    command = ["bash", "--login", "-i", str(script)]
    shell = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert shell.stdout is not None
        assert shell.stdout.readline() == "begun\n"
        shell.terminate()
        assert shell.wait(60) == 0
    finally:
        shell.kill()
        shell.wait()


def test_the_container_is_made_once_and_ray_starts_in_it(home):
    script = services(bare=False, container="box")[WORKER][RAY_SCRIPT]
    for _ in range(2):
        assert run(script).returncode == 0
    assert lines_of(home / "docker.calls") == ["ps", "run", "exec", "ps", "start", "exec"]
    started = [line for line in lines_of(home / "programs") if "/ray start" in line]
    assert len(started) == 2
    assert f"--address={HEAD}:6379" in started[0]
    made = lines_of(home / "docker.run")
    assert f"{home}/.raylaunch:/root/.raylaunch" in made
    assert "--rm" not in made


def test_notifications_leave_the_container_on_stdout_and_the_exit_code_is_kept(home):
    script = services(bare=False, container="box")[HEAD][FOLLOW_SCRIPT]
    done = run(script)
    assert done.returncode == 7
    assert done.stdout == "a line of the table\n"
    notified = [line.partition(" ")[2] for line in lines_of(home / "programs")]
    assert notified == ["STATUS=prod is ready, attempt 1", "READY=1"]


def test_a_follower_that_is_left_in_the_container_is_stopped(home):
    script = services(bare=False, container="box")[HEAD][FOLLOW_SCRIPT]
    left = subprocess.Popen(["sleep", "600"], env={**os.environ, "RAYLAUNCH_FOLLOWER": "prod"})
    try:
        assert run(script, "stop").returncode == 0
        assert left.wait(60) == -15
    finally:
        left.kill()
        left.wait()


# -- quoting ---------------------------------------------------------------------------------------


def test_words_of_a_unit_are_quoted_as_systemd_reads_them():
    assert quote_word("/usr/bin/env") == "/usr/bin/env"
    assert quote_word('a "b" %h \\') == '"a \\"b\\" %%h \\\\"'
    assert command_line(["/x y", "$A", "b"]) == '"/x y" "$$A" b'


@pytest.mark.parametrize("text", ["a\nb", "a\0b", "\x1b[0m"])
def test_a_word_that_no_unit_can_have_is_refused(text):
    with pytest.raises(NodeError, match="systemd unit"):
        quote_word(text)


def test_the_value_of_a_secret_is_not_in_the_message_that_refuses_it():
    with pytest.raises(NodeError) as refused:
        environment_file({"API_KEY": "s3cret\nvalue"})
    assert "s3cret" not in str(refused.value)
    assert environment_file({"A": 'x"$\\`y'}) == 'A="x\\"\\$\\\\\\`y"\n'


@NEEDS_SYSTEMD
def test_a_unit_name_is_valid_for_each_name_of_a_deployment(tmp_path):
    name = deployment_unit("A-1_b.c" + "x" * 53)
    text = render_unit(["t"], {"Service": [("ExecStart", "/bin/true")]})
    assert verify(tmp_path, {name: text}) == ""
