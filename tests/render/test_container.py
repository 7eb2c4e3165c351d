"""The guide's `docker run`, word by word, against ours: every difference is named with its reason."""

import shlex
from collections import Counter

import pytest

from raylaunch.errors import RecipeError
from raylaunch.plan.facts import Facts
from raylaunch.plan.planner import build_deployment_plan
from raylaunch.recipe.catalog import read
from raylaunch.render.container import docker_command, image, render_containers

IMAGE = "m.daocloud.io/quay.io/ascend/vllm-ascend"

MOUNTS = """
-v /usr/local/dcmi:/usr/local/dcmi
-v /usr/local/Ascend/driver/tools/hccn_tool:/usr/local/Ascend/driver/tools/hccn_tool
-v /usr/local/bin/npu-smi:/usr/local/bin/npu-smi
-v /usr/local/Ascend/driver/lib64/:/usr/local/Ascend/driver/lib64/
-v /usr/local/Ascend/driver/version.info:/usr/local/Ascend/driver/version.info
-v /etc/ascend_install.info:/etc/ascend_install.info
"""

A2_GUIDE = f"""
docker run -itd -u 0 --ipc=host --privileged
-e VLLM_USE_MODELSCOPE=True
-e PYTORCH_NPU_ALLOC_CONF=max_split_size_mb:256
-e ASCEND_RT_VISIBLE_DEVICES=0,1,2,3,4,5,6,7
--name minimax2_5
--net=host
--device /dev/davinci_manager
--device /dev/devmm_svm
--device /dev/hisi_hdc
--shm-size=1g
{MOUNTS}
-v /home/:/home/
-v /opt/data/verification/:/opt/data/verification/
-v /root/.cache:/root/.cache
-v /mnt/performance/:/mnt/performance/
-it {IMAGE}:TAG bash
"""

A3_GUIDE = f"""
docker run --rm
--name vllm-ascend
--net=host
--shm-size=1g
--device /dev/davinci0
--device /dev/davinci1
--device /dev/davinci2
--device /dev/davinci3
--device /dev/davinci4
--device /dev/davinci5
--device /dev/davinci6
--device /dev/davinci7
--device /dev/davinci8
--device /dev/davinci9
--device /dev/davinci10
--device /dev/davinci11
--device /dev/davinci12
--device /dev/davinci13
--device /dev/davinci14
--device /dev/davinci15
--device /dev/davinci_manager
--device /dev/devmm_svm
--device /dev/hisi_hdc
{MOUNTS}
-v /mnt/sfs_turbo/.cache:/home/cache
-it {IMAGE}:TAG bash
"""

# (words of the guide, our words instead, why)
A2_DEVIATIONS = [
    (
        "-e PYTORCH_NPU_ALLOC_CONF=max_split_size_mb:256",
        "",
        "excludes the expandable_segments of the servers",
    ),
    (
        "-e ASCEND_RT_VISIBLE_DEVICES=0,1,2,3,4,5,6,7",
        "",
        "Ray shuffles a list that was set before it",
    ),
    ("-it", "", "-itd says it already"),
]
A3_DEVIATIONS = [(f"{IMAGE}:TAG", f"{IMAGE}:TAG-a3", "the image without -a3 is built for A2")]


def options(words):
    """Options with their values, as a multiset (docker does not mind their order), and the image with its command."""
    found, rest = [], list(words[2:])
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        takes_value = word in ("-u", "-e", "-v", "--name", "--device")
        found.append(f"{word} {rest.pop(0)}" if takes_value else word)
    return Counter(found), rest


def plan_of(name):
    loaded = read(name)
    nodes = [
        Facts(f"192.0.2.{10 + n}", interface="eth0") for n in range(loaded.recipe.parallel.servers)
    ]
    return loaded, build_deployment_plan(loaded, nodes)


@pytest.mark.parametrize(
    ("name", "guide", "deviations"),
    [("a2-dual", A2_GUIDE, A2_DEVIATIONS), ("a3-single", A3_GUIDE, A3_DEVIATIONS)],
)
def test_docker_run_is_the_guides(name, guide, deviations):
    recipe = read(name).recipe
    wanted, command = options(shlex.split(guide.replace("TAG", recipe.container.tag)))
    for guide_words, our_words, _why in deviations:
        theirs, ours = (
            text.replace("TAG", recipe.container.tag) for text in (guide_words, our_words)
        )
        if theirs in wanted:
            wanted[theirs] -= 1
        else:
            assert theirs in command, "a deviation from something the guide does not say"
            command = [ours if word == theirs else word for word in command]
    assert options(docker_command(recipe)) == (+wanted, command)


def test_the_script_runs_docker_run_as_it_is():
    loaded, plan = plan_of("a2-dual")
    for text in render_containers(loaded, plan).values():
        command = text[text.index("\ndocker run") :].replace("\\\n", " ")
        assert shlex.split(command) == docker_command(loaded.recipe)


def test_each_node_has_one_container_and_says_how_to_start_its_servers():
    loaded, plan = plan_of("a2-dual")
    files = render_containers(loaded, plan)
    assert list(files) == ["container-192.0.2.10.sh", "container-192.0.2.11.sh"]
    second = files["container-192.0.2.11.sh"]
    assert "docker cp server-1-192.0.2.11.sh minimax2_5:/root/server-1-192.0.2.11.sh" in second
    assert "docker exec -it minimax2_5 bash -ic 'bash /root/server-1-192.0.2.11.sh'" in second
    assert "server-0" not in second


def test_several_servers_of_a_node_share_its_container():
    loaded = read(
        "a2-dual", ["hardware.spread=false", "hardware.npus_per_server=4", "parallel.tensor=4"]
    )
    plan = build_deployment_plan(loaded, [Facts("192.0.2.10", interface="eth0")])
    files = render_containers(loaded, plan)
    assert list(files) == ["container-192.0.2.10.sh"]
    assert files["container-192.0.2.10.sh"].count("docker exec") == 2


def test_groups_that_share_a_node_share_its_container():
    loaded = read("a3-single", ["parallel.data=2", "parallel.replicas=2"])
    plan = build_deployment_plan(loaded, [Facts("192.0.2.10", interface="eth0")])
    (text,) = render_containers(loaded, plan).values()
    for group in ("serve-0", "serve-1"):
        assert f"bash /root/{group}-server-0-192.0.2.10.sh" in text
    assert text.count("\ndocker run") == 1


def test_davinci_stands_for_every_npu_of_the_node():
    recipe = read("a3-single", ["hardware.npus_per_node=4", "parallel.tensor=1"]).recipe
    words = docker_command(recipe)
    assert [word for word in words if word.startswith("/dev/davinci") and word[-1].isdigit()] == [
        f"/dev/davinci{n}" for n in range(4)
    ]


def test_the_tag_follows_the_board():
    assert image(read("a2-dual").recipe).endswith(":v0.23.0.post1")
    assert image(read("a3-single").recipe).endswith(":v0.23.0.post1-a3")
    for given, wanted in [
        ("v9-a3", "v9-a3"),
        ("v9-openeuler", "v9-a3-openeuler"),
        ("v9-a3-openeuler",) * 2,
    ]:
        assert image(read("a3-single", [f"container.tag={given}"]).recipe).endswith(f":{wanted}")


def test_secrets_are_handed_in_by_name():
    loaded = read("a2-dual", ["secrets=[VLLM_API_KEY]"])
    plan = build_deployment_plan(
        loaded, [Facts(f"192.0.2.{n}", interface="eth0") for n in (10, 11)]
    )
    text = render_containers(loaded, plan)["container-192.0.2.10.sh"]
    assert "docker exec -it -e VLLM_API_KEY minimax2_5" in text


def test_a_recipe_without_container_says_so():
    loaded, plan = plan_of("local-dual")
    with pytest.raises(RecipeError, match="names no container"):
        render_containers(loaded, plan)
