import errno
from pathlib import Path

import pytest

from raylaunch.node.probe import tuning

GUIDE = {
    "governor": "performance",
    "vm.swappiness": 0,
    "kernel.numa_balancing": False,
    "kernel.sched_migration_cost_ns": 50000,
}
OLD = "proc/sys/kernel/sched_migration_cost_ns"
NEW = "sys/kernel/debug/sched/migration_cost_ns"


def host(root, governors=("schedutil", "schedutil"), migration=OLD, jemalloc=""):
    files = {
        f"sys/devices/system/cpu/cpu{i}/cpufreq/scaling_governor": name
        for i, name in enumerate(governors)
    }
    files |= {
        "proc/sys/vm/swappiness": "60",
        "proc/sys/kernel/numa_balancing": "1",
        migration: "500000",
    }
    if jemalloc:
        files[jemalloc] = ""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.mark.parametrize("migration", [OLD, NEW])
def test_all_settings_are_read_wherever_the_kernel_keeps_them(tmp_path, migration):
    root = host(tmp_path, migration=migration, jemalloc="usr/lib64/libjemalloc.so.2")
    assert tuning.read_tuning(root=root) == {
        "governor": "schedutil",
        "vm.swappiness": "60",
        "kernel.numa_balancing": "1",
        "kernel.sched_migration_cost_ns": "500000",
        "jemalloc": str(root / "usr/lib64/libjemalloc.so.2"),
    }


def test_what_is_not_there_is_empty(tmp_path):
    assert set(tuning.read_tuning(root=tmp_path).values()) == {""}


def test_governors_that_differ_are_all_named(tmp_path):
    assert (
        tuning.read_tuning(root=host(tmp_path, ("performance", "powersave")))["governor"]
        == "performance,powersave"
    )


def test_further_sysctls_can_be_asked_for(tmp_path):
    assert (
        tuning.read_tuning(["net.core.somaxconn", "governor"], root=host(tmp_path))[
            "net.core.somaxconn"
        ]
        == ""
    )


def test_this_machine_answers():
    assert tuning.read_tuning()["vm.swappiness"].isdigit()


@pytest.mark.parametrize(
    ("arch", "place"),
    [
        ("aarch64", "usr/lib/aarch64-linux-gnu/libjemalloc.so.2"),
        ("x86_64", "usr/lib/x86_64-linux-gnu/libjemalloc.so.2"),
        ("aarch64", "usr/lib64/libjemalloc.so.2"),
    ],
)
def test_jemalloc_is_found_where_each_system_puts_it(tmp_path, arch, place):
    assert tuning.find_jemalloc(arch, root=tmp_path) is None
    host(tmp_path, jemalloc=place)
    assert tuning.find_jemalloc(arch, root=tmp_path) == str(tmp_path / place)


def test_a_library_of_another_architecture_is_not_used(tmp_path):
    root = host(tmp_path, jemalloc="usr/lib/x86_64-linux-gnu/libjemalloc.so.2")
    assert tuning.find_jemalloc("aarch64", root=root) is None


@pytest.mark.parametrize("migration", [OLD, NEW])
def test_apply_sets_what_differs_and_reports_what_it_was(tmp_path, migration):
    root = host(tmp_path, migration=migration)
    steps = tuning.apply(GUIDE, root=root)
    assert [(step.name, step.before, step.outcome) for step in steps] == [
        ("governor", "schedutil", "set"),
        ("vm.swappiness", "60", "set"),
        ("kernel.numa_balancing", "1", "set"),
        ("kernel.sched_migration_cost_ns", "500000", "set"),
    ]
    assert tuning.read_tuning(root=root) == {
        "governor": "performance",
        "vm.swappiness": "0",
        "kernel.numa_balancing": "0",
        "kernel.sched_migration_cost_ns": "50000",
        "jemalloc": "",
    }
    assert {step.outcome for step in tuning.apply(GUIDE, root=root)} == {"already"}


def test_one_cpu_left_behind_is_set_as_well(tmp_path):
    root = host(tmp_path, ("performance", "powersave"))
    assert [step.outcome for step in tuning.apply({"governor": "performance"}, root=root)] == [
        "set"
    ]
    assert tuning.read_tuning(root=root)["governor"] == "performance"


def test_what_the_kernel_does_not_have_is_left_to_the_host(tmp_path):
    steps = tuning.apply(GUIDE, root=tmp_path)
    assert {step.outcome for step in steps} == {"host"}
    assert [step.todo for step in steps] == [
        "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
        "sudo sysctl -w vm.swappiness=0",
        "sudo sysctl -w kernel.numa_balancing=0",
        f"sudo sysctl -w kernel.sched_migration_cost_ns=50000 || echo 50000 | sudo tee /{NEW}",
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_file_system_is_left_to_the_host_and_the_rest_is_set(tmp_path, monkeypatch):
    root = host(tmp_path)
    write = Path.write_text

    def refuse(file, text):
        if file.name == "swappiness":
            raise OSError(errno.EROFS, "Read-only file system")
        return write(file, text)

    monkeypatch.setattr(Path, "write_text", refuse)
    steps = tuning.apply(GUIDE, root=root)
    assert [step.outcome for step in steps] == ["set", "host", "set", "set"]
    assert steps[1].why.endswith("swappiness: Read-only file system")


def test_a_value_that_the_kernel_does_not_keep_is_not_called_set(tmp_path, monkeypatch):
    root = host(tmp_path)
    monkeypatch.setattr(Path, "write_text", lambda *_: 0)
    (step,) = tuning.apply({"vm.swappiness": 0}, root=root)
    assert step.outcome == "host"
    assert step.why.endswith("the kernel kept 60")


def test_jemalloc_can_only_be_installed(tmp_path):
    (absent,) = tuning.apply({"jemalloc": True}, root=tmp_path)
    assert (absent.outcome, absent.before) == ("host", "")
    assert "libjemalloc2" in absent.todo
    (unwanted,) = tuning.apply({"jemalloc": False}, root=tmp_path)
    assert unwanted.outcome == "already"
    (present,) = tuning.apply(
        {"jemalloc": True}, root=host(tmp_path, jemalloc="usr/lib64/libjemalloc.so.2")
    )
    assert present.outcome == "already"


@pytest.mark.parametrize("name", ["swappiness", "vm/../../etc/passwd", "vm...x", "../x.y", ""])
def test_a_name_that_is_no_setting_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="no host setting"):
        tuning.apply({name: 1}, root=tmp_path)


def test_comparing_sets_nothing_and_names_the_command(tmp_path):
    root = host(tmp_path)
    before = tuning.read_tuning(root=root)
    steps = {
        step.name: step
        for step in tuning.compare({**GUIDE, "vm.swappiness": 60, "vm.nothing": 1}, root=root)
    }
    assert tuning.read_tuning(root=root) == before
    assert steps["vm.swappiness"].outcome == "already"
    assert (steps["governor"].outcome, steps["governor"].before) == ("unmet", "schedutil")
    assert "scaling_governor" in steps["governor"].todo
    assert steps["vm.nothing"].outcome == "host", "there is no such knob"
