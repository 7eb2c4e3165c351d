"""What becomes of the odd things in launch scripts: each is in the recipe or in the report."""

import pytest

from raylaunch.errors import RecipeError
from raylaunch.importer.import_scripts import import_scripts


def made(text, **more):
    return import_scripts({"run.sh": text}, **more)


def found(result, id_, level=None):
    return [
        f"{each.what} | {each.seen}"
        for each in result.findings
        if each.id == id_ and level in (None, each.level)
    ]


def test_no_server_is_an_error_that_says_what_to_give():
    with pytest.raises(RecipeError, match="no `vllm serve`") as caught:
        made("export A=1\ndocker run -it quay.io/x/y:z bash\n")
    assert "raylaunch import" in caught.value.todo


@pytest.mark.parametrize("platform", ["ascend-a4", ""])
def test_an_unknown_platform_is_refused(platform):
    with pytest.raises(RecipeError, match="platform"):
        made("vllm serve /m", platform=platform)


@pytest.mark.parametrize(
    ("text", "platform"),
    [
        ("vllm serve /m -tp 8", "ascend-a2"),
        ("vllm serve /m -tp 16", "ascend-a3"),
        ("vllm serve /m -tp 4 -dp 4", "ascend-a3"),
        ("vllm serve /m -tp 4 -dp 4 -dpl 2", "ascend-a2"),
        ("docker run -it quay.io/x/y:v1-a3 bash\nvllm serve /m -tp 4", "ascend-a3"),
        ("export ASCEND_A3_ENABLE=1\nvllm serve /m -tp 8", "ascend-a3"),
        (
            "export ASCEND_RT_VISIBLE_DEVICES=0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\nvllm serve /m -tp 8",
            "ascend-a3",
        ),
        ("export VLLM_CPU_KVCACHE_SPACE=1\nvllm serve /m", "cpu"),
    ],
)
def test_the_platform_is_inferred_and_told(text, platform):
    result = made(text)
    assert result.values["hardware"]["platform"] == platform
    assert any(f"hardware.platform={platform}" in told for told in found(result, "assumed"))


def test_the_platform_that_is_asked_for_wins():
    assert (
        made("vllm serve /m -tp 8", platform="ascend-a3").values["hardware"]["platform"]
        == "ascend-a3"
    )


def test_the_tag_of_an_a3_image_loses_its_suffix():
    result = made("docker run -it h:5000/x/y:v1-a3 bash\nvllm serve /m -tp 16")
    assert (result.values["container"]["image"], result.values["container"]["tag"]) == (
        "h:5000/x/y",
        "v1",
    )


def test_every_npu_of_a_node_becomes_one_pattern():
    devices = " ".join(f"--device /dev/davinci{number}" for number in range(16))
    result = made(
        f"docker run -it {devices} --device /dev/devmm_svm x:v1-a3 bash\nvllm serve /m -tp 16"
    )
    assert result.values["container"]["devices"] == ["/dev/davinci*", "/dev/devmm_svm"]


def test_a_server_inside_docker_run_is_read():
    result = made(
        "docker run --rm quay.io/x/y:v1 bash -c 'export OMP_NUM_THREADS=1; vllm serve /m --seed 1'"
    )
    assert result.values["args"] == {"seed": 1}
    assert result.values["env"] == {"OMP_NUM_THREADS": 1}
    assert made("docker run quay.io/x/y:v1 vllm serve /m --seed 2").values["args"] == {"seed": 2}


@pytest.mark.parametrize(
    "text",
    [
        "A=1 nohup vllm serve /m --seed 3 > log 2>&1 &",
        "export A=1\nexec vllm serve /m --seed=3 \\",
        "A=1\nexport A\npython3 -m vllm.entrypoints.openai.api_server --model /m --seed 3",
        "export A=1; /usr/local/bin/vllm serve --seed 3 --model /m | tee log",
        "bash -c 'export A=1; vllm serve /m --seed 3'",
        "SEED=3\nexport A=0\nexport A=1\nvllm serve /m --seed ${SEED}",
        'ARGS="--seed 3"\nexport A=1\nvllm serve /m $ARGS',
    ],
)
def test_a_server_may_be_started_in_many_ways(text):
    values = made(text).values
    assert (values["model"]["path"], values["args"], values["env"]) == ("/m", {"seed": 3}, {"A": 1})


def test_values_keep_their_letters():
    text = """vllm serve /m --a 007 --b 1e5 --c 0.90 --d true --e '{"k": 1, "k": 2}' --f '[1, 2]' --g=-1 --h '{not json'"""
    assert made(text).values["args"] == {
        "a": "007",
        "b": "1e5",
        "c": "0.90",
        "d": "true",
        "e": '{"k": 1, "k": 2}',
        "f": [1, 2],
        "g": -1,
        "h": "{not json",
    }


def test_secrets_are_named_and_never_kept():
    result = made(
        "export HF_TOKEN=hf-1\nexport http_proxy=http://me:pw-2@proxy:1\nvllm serve /m --api-key sk-3\n"
        "docker run -e MY_PASSWORD=pw-4 -it x:y bash"
    )
    assert set(result.values["secrets"]) == {
        "HF_TOKEN",
        "http_proxy",
        "VLLM_API_KEY",
        "MY_PASSWORD",
    }
    everything = f"{result.yaml} {result.placed} {result.findings}"
    assert not [secret for secret in ("hf-1", "pw-2", "sk-3", "pw-4") if secret in everything]


def test_nodes_that_differ_are_reported_and_the_primary_counts():
    same = "vllm serve /m -dp 2 -dpl 1 --max-num-seqs 8"
    first = f"export A=1\nexport ONLY=1\n{same} --seed 1 --swap-space 4"
    second = f"export A=2\nexport MORE=1\n{same} -dpr 1 --headless --seed 2 --block-size 16"
    result = import_scripts({"0.sh": first, "1.sh": second})
    assert result.values["args"] == {"max-num-seqs": 8, "seed": 1, "swap-space": 4}
    assert result.values["env"] == {"A": 1, "ONLY": 1}
    told = " ".join(found(result, "conflict"))
    for word in ("--seed 2", "--block-size 16", "--swap-space 4", "A=2", "MORE=1", "ONLY"):
        assert word in told


def test_the_order_of_the_files_does_not_matter():
    first, second = (
        "vllm serve /m -dp 2 -dpl 1 --port 9",
        "vllm serve /m -dp 2 -dpl 1 -dpr 1 --headless --port 7",
    )
    result = import_scripts({"1.sh": second, "0.sh": first})
    assert result.values["network"]["http_port"] == 9


def test_several_deployments_are_listed_and_one_is_picked():
    text = "vllm serve /a --seed 1\nvllm serve /b --seed 2\n"
    result = made(text)
    assert result.values["model"]["path"] == "/a"
    assert "2 is run.sh:2: /b" in found(result, "several-deployments")[0]
    assert "/b --seed 2" in found(result, "other-deployment")[0]
    assert made(text, pick=2).values["model"]["path"] == "/b"
    with pytest.raises(RecipeError, match="no deployment 3"):
        made(text, pick=3)


ROLES = """
if [ "$RANK" = 0 ]; then
  ROLE=""; START=0
  export WHO=first
else
  ROLE=--headless; START=1
  export WHO=second ONLY=second
fi
ARGS=(--max-num-seqs 16)
ARGS+=(
  --seed 1
)
vllm serve /m -dp 2 -dpl 1 -dpr $START $ROLE "${ARGS[@]}" -O3
"""


def test_behind_a_condition_its_first_branch_counts_and_the_other_is_reported():
    result = made(ROLES)
    assert not result.yaml.count("headless")
    assert result.values["args"] == {"max-num-seqs": 16, "seed": 1, "optimization-level": 3}
    assert result.values["env"] == {"WHO": "first"}
    told = " ".join(found(result, "not-placed", "warning"))
    assert "WHO=second" in told
    assert "ONLY=second" in told


def test_servers_in_both_branches_are_one_deployment():
    same = "vllm serve /m -dp 2 -dpl 1"
    text = f"if x; then\n export A=1\n {same} --seed 1\nelse\n export A=1\n {same} --headless -dpr 1 --seed 1\nfi"
    result = made(text)
    assert result.values["parallel"]["data"] == 2
    assert not found(result, "conflict")
    assert result.values["env"] == {"A": 1}


def test_a_flag_with_several_values_is_left_out_and_reported():
    result = made("vllm serve /m --lora-modules a=/x b=/y --served-model-name one two")
    assert "args" not in result.values
    assert result.values["model"]["served_name"] == "one"
    told = " ".join(found(result, "not-placed"))
    assert "--lora-modules a=/x b=/y" in told
    assert "two" in told


def test_a_loop_over_known_words_is_unrolled():
    result = made("for port in 8000 8001; do\n vllm serve /m --port $port &\ndone", pick=2)
    assert result.values["network"]["http_port"] == 8001
    assert not found(result, "shell")


def test_a_loop_over_unknown_words_is_reported():
    result = made("for port in $PORTS; do\n vllm serve /m --port $port &\ndone")
    told = " ".join(found(result, "shell"))
    assert "a loop" in told
    assert "stands in a loop" in told


def test_lines_that_lost_their_backslash_are_reported():
    result = made("vllm serve /m \\\n  --seed 1\n  --block-size 16\n")
    assert result.values["args"] == {"seed": 1}
    assert "--block-size 16" in found(result, "not-placed", "warning")[0]


def test_a_comment_between_continued_lines_ends_the_command_and_that_is_reported():
    result = made("vllm serve /m \\\n  --seed 1 \\\n  # --enforce-eager \\\n  --block-size 16\n")
    assert result.values["args"] == {"seed": 1}
    assert "--block-size 16" in found(result, "not-placed", "warning")[0]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("vllm serve /m -dp 4 -dpn 1 --port 9", "-dpn 1"),
        ("vllm serve /m -dp 4 -dpl 2 --data-parallel-hybrid-lb", "--data-parallel-hybrid-lb"),
        (
            "vllm serve /m -dp 4 -dpl 2 -dpr 0\nvllm serve /m -dp 4 -dpl 2 -dpr 2",
            "--data-parallel-start-rank 2",
        ),
        ("vllm serve /m -dp 4 -dpl 0", "--data-parallel-size-local 0"),
        ("vllm serve /m -tp 8 -pp 2 --nnodes 2 --node-rank 0", "--nnodes 2"),
        (
            (
                "export ASCEND_RT_VISIBLE_DEVICES=0,1\nray start --head\n"
                "vllm serve /m -tp 4 --distributed-executor-backend ray"
            ),
            "2 NPUs per node",
        ),
    ],
)
def test_what_no_recipe_can_hold_is_refused_with_the_reason(text, why):
    with pytest.raises(RecipeError, match="a recipe cannot hold") as caught:
        made(text)
    assert why in caught.value.why
    assert caught.value.todo


def test_a_reasoning_parser_without_tool_calling_has_its_own_field():
    assert made("vllm serve /m --reasoning-parser p").values["features"] == {
        "reasoning_parser": "p"
    }


def test_tool_calling_without_a_reasoning_parser_gets_none():
    tools = made("vllm serve /m --enable-auto-tool-choice --tool-call-parser t").values["features"][
        "tool_calling"
    ]
    assert tools == {"enabled": True, "tool_parser": "t", "reasoning_parser": ""}


def test_host_tuning_and_jemalloc_are_placed():
    result = made(
        "echo performance | tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor\nsysctl -w vm.swappiness=0\n"
        "sysctl kernel.numa_balancing=0\nexport LD_PRELOAD=/usr/lib/libjemalloc.so.2:$LD_PRELOAD\nvllm serve /m"
    )
    assert result.values["tuning"] == {
        "jemalloc": True,
        "governor": "performance",
        "sysctl": {"vm.swappiness": 0, "kernel.numa_balancing": 0},
    }


PAGE = """Start the service
This page explains how the service doesn't start by itself on a node.
Run the following commands on the first machine of the two, please.
export OMP_NUM_THREADS=1
vllm serve /m \\
--tensor-parallel-size 8 \\
--speculative_config '{"method": "mtp", "num_speculative_tokens": 1}' \\
Remarks:
- Here is a remark that nobody can run, and it's long enough to be one.
You may add the following flags to the command when you want to try it:
--block-size 16 \\
--seed 1
The end of the page is reached here.
"""


def test_a_page_without_fences_gives_its_commands():
    result = made(PAGE)
    assert result.values["features"]["speculative"] == {
        "enabled": True,
        "method": "mtp",
        "num_speculative_tokens": 1,
    }
    assert result.values["env"] == {"OMP_NUM_THREADS": 1}
    assert "args" not in result.values
    assert any("--block-size 16" in told for told in found(result, "not-placed"))


def test_a_file_begins_with_what_is_left_to_do():
    head = made("vllm serve ${WEIGHTS} --port <port>").yaml.split("\n\n")[0]
    assert "model.path holds a placeholder" in head
    assert "network.http_port" in head
