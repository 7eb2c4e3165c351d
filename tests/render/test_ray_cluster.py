"""Files for `ray up`: what Ray's own schema, launcher and command builder make of them."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import secrets
import shlex
import subprocess
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from test_container import A2_GUIDE, A3_DEVIATIONS, A3_GUIDE, options

from raylaunch.errors import PlanError, RecipeError
from raylaunch.recipe.catalog import read
from raylaunch.recipe.gateway_settings import INSTALL_HAPROXY
from raylaunch.render.container import docker_command, image, run_options
from raylaunch.render.ray_cluster import RAY, render_cluster

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = sorted((ROOT / "cluster").glob("*.yaml"))
HEAD, WORKER = "192.0.2.10", "192.0.2.11"

PREPARE = """
import sys, yaml
from ray.autoscaler._private.util import prepare_config, validate_config
for path in sys.argv[1:]:
    validate_config(prepare_config(yaml.safe_load(open(path))))
"""

UP = """
import json, sys
from ray.autoscaler._private import commands
from ray.autoscaler._private.command_runner import SSHCommandRunner
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler._private.updater import NodeUpdaterThread
from ray.autoscaler._private.util import with_head_node_ip

SSHCommandRunner._ensure_ssh_control_path = lambda self: None  # a folder of the machine's /tmp
config = commands.create_or_update_cluster(
    sys.argv[1], None, None, no_restart=False, restart_only=False, yes=True, no_config_cache=True
)
provider = _get_node_provider(config["provider"], config["cluster_name"])
for worker in config["provider"]["worker_ips"]:  # as the head's autoscaler does it
    provider.create_node({}, {"ray-node-type": "worker"}, 1)
    updater = NodeUpdaterThread(
        worker, config["provider"], provider, config["auth"], config["cluster_name"], config["file_mounts"],
        config["initialization_commands"], config["worker_setup_commands"],
        with_head_node_ip(config["worker_start_ray_commands"], config["provider"]["head_ip"]),
        "hash", "hash", is_head_node=False, docker_config=config.get("docker"),
    )
    updater.start()
    updater.join()
    assert updater.exitcode == 0
"""
"""`ray up` in one process, with what the head would then do for each worker."""

SSH = """#!/bin/bash
# ssh without a network: runs the command here, in the host's own HOME.
while [[ $1 == -* ]]; do case $1 in -[iolp]) shift 2;; *) shift;; esac; done
export HOME=$HOSTS/${1#*@}; shift
exec /bin/bash -c "$*"
"""

DOCKER = r"""#!/bin/bash
# docker that only writes down how it was called, one call per line, and answers as if all went well.
printf '%q ' "$@" >> "$HOME/docker.calls"; echo >> "$HOME/docker.calls"
case "$*" in
  "run --rm --name "*) touch "$HOME/running";;
  *.State.Running*) test -e "$HOME/running" && echo true;;
  *.Config.Env*) echo '["HOME=/root"]';;
  *printenv*) echo /root;;
esac
exit 0
"""


def render(recipe, /, **more):
    given = {"head": HEAD, "workers": [WORKER], "ssh_user": "ray", **more}
    return render_cluster(read(recipe, given.pop("sets", ())), **given)


def ours(recipe, /, **more):
    return yaml.safe_load(render(recipe, **more))


def python(code, *arguments, env=None):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env=env
    )


def test_the_shipped_files_are_current():
    command = [sys.executable, str(ROOT / "tools" / "cluster_files.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in FILES] == ["a2-dual.yaml", "a3-single.yaml", "bare.yaml"]


def test_rays_schema_takes_the_shipped_files(tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text(FILES[0].read_text() + "nonsense: true\n")
    done = python(PREPARE, *FILES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nonsense" in python(PREPARE, broken).stderr


def script(folder, name, text):
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def up(tmp_path):
    """Run `ray up` of a text on hosts without a network; returns the calls of docker by host."""

    def go(text):
        programs, hosts, home = (tmp_path / name for name in ("programs", "hosts", "home"))
        programs.mkdir()
        script(programs, "ssh", SSH)
        script(programs, "docker", DOCKER)
        for name in ("rsync", "mkdir", "chown"):
            script(programs, name, "#!/bin/true\n")
        path = f"{programs}:{os.environ['PATH']}"
        config = yaml.safe_load(text)
        for ip in (config["provider"]["head_ip"], *config["provider"]["worker_ips"]):
            (hosts / ip).mkdir(parents=True)
            (hosts / ip / ".bashrc").write_text(f"export PATH={path}\n")
        folder = home / next(iter(config["file_mounts"])).removeprefix("~/")
        folder.mkdir(parents=True)
        (folder / "token").write_text("t")
        (tmp_path / "cluster.yaml").write_text(text)
        env = {"HOME": str(home), "PATH": path, "HOSTS": str(hosts)}
        env |= dict.fromkeys(["RAY_TMPDIR", "TMPDIR"], str(tmp_path))
        done = python(UP, tmp_path / "cluster.yaml", env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        return {
            host.name: [
                shlex.split(line) for line in (host / "docker.calls").read_text().splitlines()
            ]
            for host in hosts.iterdir()
        }

    return go


# (words of the guide, ours instead, why)
RAYS_OWN = ["-e LC_ALL=C.UTF-8", "-e LANG=C.UTF-8", "-e RAY_AUTH_MODE=token"]
A2_DEVIATIONS = [
    (
        ["-e PYTORCH_NPU_ALLOC_CONF=max_split_size_mb:256"],
        [],
        "excludes the expandable_segments of the servers",
    ),
    (
        ["-e ASCEND_RT_VISIBLE_DEVICES=0,1,2,3,4,5,6,7"],
        [],
        "Ray shuffles a list that was set before it",
    ),
    (["-itd"], ["-d", "--rm"], "`ray up` starts containers so"),
]
A3_DEVIATIONS_TOO = [([], ["-d"], "`ray up` starts containers so")]


@pytest.mark.parametrize(
    ("name", "workers", "guide", "deviations", "image_deviations"),
    [
        ("a2-dual", [WORKER], A2_GUIDE, A2_DEVIATIONS, []),
        ("a3-single", [], A3_GUIDE, A3_DEVIATIONS_TOO, A3_DEVIATIONS),
    ],
)
def test_rays_docker_run_is_the_guides(up, name, workers, guide, deviations, image_deviations):
    recipe = read(name).recipe
    wanted, command = options(shlex.split(guide.replace("TAG", recipe.container.tag)))
    for theirs, instead, _why in deviations:
        assert not Counter(theirs) - wanted, "a deviation from something the guide does not say"
        wanted = wanted - Counter(theirs) + Counter(instead)
    for theirs, instead, _why in image_deviations:
        old, new = (text.replace("TAG", recipe.container.tag) for text in (theirs, instead))
        command = [new if word == old else word for word in command]
    folder = f".raylaunch/cluster/{name}"
    wanted += Counter([*RAYS_OWN, f"-e RAY_AUTH_TOKEN_PATH=/root/{folder}/token"])
    wanted += Counter(
        [f"-v /tmp/ray_tmp_mount/{name}/~/{folder}:/root/{folder}"]
    )  # Ray's way to bring the token
    calls = up(render(name, workers=workers, ssh_user=getpass.getuser()))
    assert sorted(calls) == [HEAD, *workers]
    for host, made in calls.items():
        (run,) = [call for call in made if call[0] == "run" and "--name" in call]
        assert options(["docker", *run]) == (wanted, command), host
        assert not [call for call in made if call[0] == "pull"]


def test_ray_starts_in_the_container_of_every_host(up):
    calls = up(render("a2-dual", ssh_user=getpass.getuser()))
    starts = {
        host: [call[-1] for call in made if "ray start" in call[-1]] for host, made in calls.items()
    }
    assert [len(found) for found in starts.values()] == [1, 1]
    assert "/root/.raylaunch/cluster/a2-dual/token" in starts[HEAD][0]
    assert "--autoscaling-config=/root/ray_bootstrap_config.yaml" in starts[HEAD][0]
    assert starts[HEAD][0].index("RAY_enable_autoscaler_v2=0") > starts[HEAD][0].index(
        "RAY_enable_autoscaler_v2="
    )
    assert f"export RAY_HEAD_IP={HEAD}" in starts[WORKER][0]


def test_an_image_without_what_a_node_needs_is_refused_with_the_remedy(tmp_path):
    (check,) = ours("a2-dual")["initialization_commands"]
    script(tmp_path, "docker", '#!/bin/bash\nshift 3; exec "$@"\n')
    script(tmp_path, "rsync", "#!/bin/true\n")
    script(tmp_path, "ssh", "#!/bin/true\n")
    script(tmp_path, "ray", "#!/bin/bash\necho ray, version $VERSION\n")
    script(tmp_path, "python3", "#!/bin/bash\nexit $NO_HAPROXY\n")
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    good, old, no_haproxy = (
        subprocess.run(
            ["bash", "-c", check],
            env={**env, "VERSION": ray, "NO_HAPROXY": missing},
            capture_output=True,
            text=True,
            check=False,
        )
        for ray, missing in ((f"{RAY}.0", "0"), ("2.48.0", "0"), (f"{RAY}.0", "1"))
    )
    assert (good.returncode, good.stderr) == (0, "")
    assert old.returncode != 0
    assert no_haproxy.returncode != 0
    assert f"RUN {INSTALL_HAPROXY}\n" in no_haproxy.stderr
    assert f"FROM {image(read('a2-dual').recipe)}\nRUN apt-get" in old.stderr
    assert "under docker and under initialization_commands" in old.stderr, (
        "where the new image must be named"
    )


def test_without_a_gateway_the_image_needs_no_haproxy():
    text = render("a2-dual", sets=["gateway.enabled=false"])
    (check,) = yaml.safe_load(text)["initialization_commands"]
    assert "haproxy" not in check.lower()


@pytest.mark.parametrize(
    "path", [path for path in FILES if "docker" in yaml.safe_load(path.read_text())], ids=str
)
def test_whoever_edits_the_marked_lines_has_replaced_the_image(path):
    text, mine = path.read_text(), "registry.example/mine:1"
    old = yaml.safe_load(text)["docker"]["image"]
    edited = "\n".join(
        line.replace(old, mine) if "# EDIT" in line else line for line in text.splitlines()
    )
    assert old not in edited
    config = yaml.safe_load(edited)
    assert config["docker"]["image"] == mine
    assert f"image={mine} " in config["initialization_commands"][0]


def test_the_check_asks_the_image_that_ray_starts(up):
    sets = ["container.image=registry.example/mine", "container.tag=v1"]
    calls = up(render("a2-dual", ssh_user=getpass.getuser(), sets=sets))
    for made in calls.values():
        (check,) = [call for call in made if call[:2] == ["run", "--rm"] and "--name" not in call]
        assert check[2:5] == ["registry.example/mine:v1", "bash", "-c"]


def starts_of(config):
    return config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]


def test_start_commands_set_what_ray_needs():
    head, worker = starts_of(ours("a2-dual"))
    assert head.startswith("export RAY_enable_autoscaler_v2=0;"), (
        "what ray up puts before it says 1"
    )
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    for command in (head, worker):
        assert "RAY_AUTH_MODE=token" in command
        assert "RAY_worker_niceness=0" in command
        assert "unset ASCEND_RT_VISIBLE_DEVICES" in command
        assert """--resources='{"NPU": 8}'""" in command
        assert "--object-store-memory=200000000" in command
        assert command.index("set_env.sh") < command.index("ray start")


def test_the_gcs_of_the_head_keeps_its_tables_on_disk():
    head, worker = starts_of(ours("a2-dual"))
    assert "RAY_gcs_storage=rocksdb RAY_gcs_storage_path=~/.raylaunch/gcs/a2-dual;" in head
    assert "RAY_gcs_storage" not in worker
    assert head.index("mkdir -p -m 700 ~/.raylaunch/gcs/a2-dual;") < head.index("ray start")


def with_marker(name):
    """Pids of the processes of a cluster, as its own commands find them."""
    wanted = f"RAYLAUNCH_CLUSTER={name}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


RAY_THAT_DIES_TWICE = """#!/bin/bash
echo "$*" >> "$HOME/calls"
echo Ray runtime started.
[ "$(wc -l < "$HOME/calls")" -lt 3 ] && exit 1
exec sleep 600
"""


def test_in_a_container_ray_is_started_again_until_the_next_up(tmp_path):
    name = f"t-{secrets.token_hex(4)}"
    stop, start = ours("a2-dual", name=name)["head_start_ray_commands"]
    script(tmp_path, "ray", RAY_THAT_DIES_TWICE)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)}

    def run(command):
        return subprocess.run(
            ["bash", "-c", command], env=env, capture_output=True, check=False, timeout=120
        ).returncode

    guarded = {**env, "RAYLAUNCH_CLUSTER": name, "RAYLAUNCH_DEPLOYMENT": "a2-dual"}
    with subprocess.Popen(["sleep", "600"], env=guarded) as guard:
        try:
            assert run(start) == 0
            deadline = time.monotonic() + 60
            while len(calls := (tmp_path / "calls").read_text().splitlines()) < 3:
                assert time.monotonic() < deadline, calls
                time.sleep(0.05)  # the loop announces nothing
            assert all(
                call.startswith("start --head") and call.endswith(" --block") for call in calls
            )
            assert len(with_marker(name)) > 1
            assert run(stop) == 0
            assert with_marker(name) == [guard.pid], "servers outlive a restart of Ray"
        finally:
            run(stop)
            guard.kill()


def test_on_bare_hosts_nothing_starts_ray_again():
    for command in starts_of(ours("a2-dual", bare=True)):
        assert "--block" not in command
        assert "RAYLAUNCH_RAY_RESTARTS" not in command
        assert "reconnect_timeout" not in command, "on a worker Ray exits when the head is down"


TOOLKITS = {"cann": "usr/local/Ascend/cann", "older": "usr/local/Ascend/ascend-toolkit"}


@pytest.mark.parametrize(
    ("there", "sourced"),
    [
        ((), []),
        (("cann",), ["cann"]),
        (("older",), ["older"]),
        (("cann", "atb"), ["cann", "atb"]),
        (("older", "atb"), ["older", "atb"]),
        (("older", "cann", "atb"), ["cann", "atb"]),
    ],
)
@pytest.mark.parametrize("role", [0, 1], ids=["head", "worker"])
def test_ray_starts_in_the_environment_of_cann(tmp_path, role, there, sourced):
    """`ray` is a stand-in that tells which set_env.sh it was started after."""
    for name in there:
        folder = tmp_path / {**TOOLKITS, "atb": "usr/local/Ascend/nnal/atb"}[name]
        folder.mkdir(parents=True)
        (folder / "set_env.sh").write_text(f'export SOURCED="$SOURCED {name}"\n')
    script(tmp_path, "ray", '#!/bin/bash\necho "$1$SOURCED"\n')
    command = starts_of(ours("a2-dual", bare=True))[role].replace(" /usr/", f" {tmp_path}/usr/")
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", command], env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["start", *sourced]


def test_npus_and_image_follow_the_recipe():
    config = ours("a3-single", workers=[], sets=["container.tag=v9", "hardware.npus_per_node=32"])
    assert config["docker"]["image"].endswith(":v9-a3")
    assert '{"NPU": 32}' in starts_of(config)[0]
    assert "--device /dev/davinci31" in config["docker"]["run_options"]


def test_worker_ports_leave_the_recipes_alone():
    def ports(*sets):
        words = starts_of(ours("a2-dual", sets=sets))[0].split()
        return [int(word.partition("=")[2]) for word in words if "worker-port" in word]

    assert ports() == [10002, 19999]
    assert ports("network.http_port=12000") == [12001, 19999]
    assert ports("network.http_port=18000", "network.rpc_port=19000") == [10002, 17999]
    assert ports("network.hccl_base_port=10500") == [10516, 19999]


def test_a_cluster_has_the_hosts_of_all_groups():
    with pytest.raises(PlanError, match="needs 2 hosts, and 1 are given"):
        render("a2-replicas", workers=[])
    assert ours("a2-replicas")["provider"]["worker_ips"]
    both_on_one = ["parallel.data=2", "parallel.replicas=2"]
    assert ours("a3-single", workers=[], sets=both_on_one)["provider"]["worker_ips"] == []


@pytest.mark.parametrize("port", [6379, 6387, 8265])
def test_a_port_that_ray_needs_is_refused(port):
    with pytest.raises(RecipeError, match=f"network.http_port: Ray itself needs port {port}"):
        render("a2-dual", sets=[f"network.http_port={port}"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workers": []}, "needs 2 hosts, and 1 are given"),
        ({"workers": [HEAD]}, "is given twice"),
        ({"workers": ["node1"]}, "'node1' is not an IPv4 address"),
        ({"head": "fd00::1"}, "is not an IPv4 address"),
        ({"name": "a b; c"}, "is not a cluster name"),
    ],
)
def test_hosts_that_cannot_be_are_refused(given, message):
    with pytest.raises(PlanError, match=message):
        render("a2-dual", **given)


def test_servers_that_share_a_host_need_fewer():
    sets = ["hardware.spread=false", "hardware.npus_per_server=4", "parallel.tensor=4"]
    assert ours("a2-dual", workers=[], sets=sets)["provider"]["worker_ips"] == []


def test_a_recipe_without_container_can_only_be_bare():
    with pytest.raises(RecipeError, match="names no container"):
        render("local-dual")
    assert "docker" not in ours("local-dual", bare=True)


def test_bare_ends_only_what_carries_the_clusters_mark(tmp_path):
    """The command that ends an earlier Ray, run for real beside a process of another cluster."""
    command = ours("a2-dual", bare=True, name=f"test-{os.getpid()}")["head_start_ray_commands"][0]

    def sleeper(mark):
        return subprocess.Popen(["sleep", "1000"], env={**os.environ, "RAYLAUNCH_CLUSTER": mark})

    mine, other = sleeper(f"test-{os.getpid()}"), sleeper(f"test-{os.getpid()}-other")
    try:
        # The dead stay in /proc until their parent, this test, asks for them; their environment is gone by then.
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert mine.wait(20) == -15
        assert other.poll() is None
    finally:
        for process in (mine, other):
            process.kill()
            process.wait()


def test_run_options_are_those_of_docker_run():
    recipe = read("a2-dual").recipe
    elsewhere = [
        "docker",
        "run",
        "-itd",
        "--name",
        "minimax2_5",
        "--net=host",
        image(recipe),
        "bash",
    ]
    assert Counter([*run_options(recipe), *elsewhere]) == Counter(docker_command(recipe))


def test_yaml_survives_awkward_values():
    config = ours("a2-dual", ssh_user="a: b", ssh_key="/keys/o'brien #1")
    assert config["auth"] == {"ssh_user": "a: b", "ssh_private_key": "/keys/o'brien #1"}
    assert json.loads(json.dumps(config)) == config


def test_the_ray_is_the_one_raylaunch_depends_on():
    assert version("ray").startswith(f"{RAY}.")
