"""`raylaunch import`: a recipe on stdout or in a file, the report beside it, exit codes for scripts."""

import json
from pathlib import Path

import yaml

from raylaunch.recipe.catalog import read

SCRIPTS = Path(__file__).parents[1] / "data" / "scripts"
NODES = [str(SCRIPTS / f"minimax-node{number}.sh") for number in (0, 1)]


def test_the_recipe_goes_to_stdout_and_the_report_to_stderr(cli, tmp_path):
    done = cli("import", *NODES)
    assert done.exit_code == 0
    assert yaml.safe_load(done.stdout)["parallel"] == {
        "tensor": 8,
        "data": 2,
        "data_local": 1,
        "expert": True,
    }
    assert "set by raylaunch itself" in done.stderr
    assert "HCCL_IF_IP" in done.stderr


def test_a_file_is_written_and_can_be_planned(cli, tmp_path):
    file = tmp_path / "mine.yaml"
    done = cli("import", *NODES, "-o", str(file))
    assert done.exit_code == 0
    assert read(str(file)).recipe.model.served_name == "mm25"
    assert "args.max-num-seqs" in done.stdout
    assert f"raylaunch plan {file}" in done.stderr.replace("\n", " ")


def test_a_foreign_file_is_not_overwritten(cli, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("precious: true\n")
    done = cli("import", *NODES, "-o", str(file))
    assert done.exit_code == 11
    assert file.read_text() == "precious: true\n"
    assert cli("import", *NODES, "-o", str(file), "--force").exit_code == 0
    assert cli("import", *NODES, "-o", str(file)).exit_code == 0, (
        "its own file may be written again"
    )


def test_json_holds_recipe_and_report(cli):
    done = cli("import", *NODES, "-o", "json")
    report = json.loads(done.stdout)
    assert done.exit_code == 0
    assert report["values"]["model"]["served_name"] == "mm25"
    assert yaml.safe_load(report["yaml"]) == report["values"]
    assert {"where", "text", "target"} == set(report["placed"][0])
    assert {"set-by-raylaunch", "assumed"} <= {finding["id"] for finding in report["findings"]}


def test_without_a_server_the_exit_code_is_a_recipe_errors(cli, tmp_path):
    empty = tmp_path / "empty.sh"
    empty.write_text("echo hello\n")
    done = cli("import", str(empty))
    assert done.exit_code == 3
    assert "no `vllm serve`" in done.stderr
    assert json.loads(cli("import", str(empty), "-o", "json").stderr)["exit_code"] == 3


def test_a_missing_file_and_a_target_that_is_no_recipe_are_told(cli, tmp_path):
    assert cli("import", str(tmp_path / "none.sh")).exit_code == 3
    assert cli("import", *NODES, "-o", str(tmp_path / "mine.txt")).exit_code == 3


def test_stdin_is_read(cli):
    done = cli("import", "-", "--platform", "ascend-a3", input="vllm serve /m --seed 1\n")
    assert yaml.safe_load(done.stdout)["hardware"] == {"platform": "ascend-a3"}


def test_quiet_leaves_the_recipe_alone_and_verbose_tells_everything(cli):
    assert cli("import", *NODES, "-q").stderr == ""
    assert "raylaunch numbers the ranks" in cli("import", *NODES, "-v").stderr
