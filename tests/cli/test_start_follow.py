"""`start --follow`: finds or starts the deployment, follows it, and notifies systemd."""

from __future__ import annotations

import os
import socket
from dataclasses import replace

import fake_api
import pytest

from raylaunch.api import deployment_verbs, follow_verb
from raylaunch.deployment import follower
from raylaunch.deployment.awaited_hosts import (
    WaitingNote,
    add_awaited,
    read_all_waiting,
    read_waiting,
)
from raylaunch.deployment.cluster_choice import unknown_name
from raylaunch.deployment.follower import HostWatch, follow_changes, wait_for_hosts
from raylaunch.deployment.service_manager import ServiceManager
from raylaunch.errors import ClusterError, LaunchError, PlacementError, UnknownDeploymentError
from raylaunch.supervise.deployment_status import GroupStatus
from raylaunch.supervise.state import Phase

REFUSED = PlacementError("two nodes are needed, and one is there").as_dict()


class Systemd:
    """The side of systemd: a bound datagram socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1))
        self._socket.setblocking(False)

    def received(self) -> list[str]:
        messages = []
        while True:
            try:
                messages.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return messages

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def systemd(request, tmp_path):
    address = str(tmp_path / "notify") if request.param == "path" else f"@notify-{os.getpid()}"
    manager = Systemd(address)
    yield manager
    manager.close()


def script(*steps):
    """A controller's long poll that plays `steps`: a status, or an error to raise."""
    left = list(steps)

    def wait_change(version):
        step = left.pop(0)
        if isinstance(step, Exception):
            raise step
        return version + 1, step

    return wait_change


def failed(error=None):
    return fake_api.look(50, Phase.FAILED, error=error)


def test_systemd_receives_readiness_once_and_a_sign_of_life_per_status(systemd):
    steps = [*fake_api.start_story(), fake_api.ready(), UnknownDeploymentError("stopped")]
    follow_changes(script(*steps), ServiceManager(systemd.address), None)
    messages = systemd.received()
    assert messages.count("READY=1") == 1
    assert messages.count("WATCHDOG=1") == len(steps) - 1
    assert messages[:2] == ["STATUS=a2-dual is checking, attempt 1", "WATCHDOG=1"]
    assert messages.index("READY=1") > messages.index("STATUS=a2-dual is ready, attempt 1")


def test_a_status_of_several_lines_sets_no_other_variable(systemd):
    ServiceManager(systemd.address).notify_status("waiting\nREADY=1")
    assert systemd.received() == ["STATUS=waiting READY=1"]


def test_the_socket_is_taken_out_of_the_environment_of_children():
    environ = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "2", "HOME": "/root"}
    assert ServiceManager.from_environment(environ).address == "@x"
    assert environ == {"HOME": "/root"}


def test_in_a_container_notifications_are_lines_of_stdout(capsys):
    ServiceManager("stdout").notify_ready()
    assert capsys.readouterr().out == "sd_notify: READY=1\n"


def test_a_socket_that_is_gone_harms_nothing(tmp_path, caplog):
    ServiceManager(str(tmp_path / "gone")).notify_ready()
    assert "cannot notify systemd (READY=1)" in caplog.text


def test_following_lasts_until_the_deployment_fails_and_has_its_error():
    followed = follow_changes(
        script(fake_api.ready(), failed(REFUSED), fake_api.ready()), ServiceManager(), None
    )
    assert followed.was_ready
    assert isinstance(followed.error, PlacementError)


def test_a_failure_without_an_error_is_a_failed_launch():
    followed = follow_changes(script(failed()), ServiceManager(), None)
    assert isinstance(followed.error, LaunchError)
    assert not followed.was_ready


def test_a_stop_by_another_command_ends_the_following():
    stopped = fake_api.look(50, Phase.STOPPED)
    followed = follow_changes(script(fake_api.ready(), stopped), ServiceManager(), None)
    assert isinstance(followed.error, UnknownDeploymentError)


def test_a_controller_that_does_not_answer_ends_the_following():
    with pytest.raises(ClusterError):
        follow_changes(script(fake_api.ready(), ClusterError("no answer")), ServiceManager(), None)


@pytest.mark.parametrize(("other", "is_ready"), [(Phase.FAILED, True), (Phase.RESTARTING, False)])
def test_a_deployment_that_serves_without_a_failed_group_counts_as_ready(other, is_ready):
    degraded = replace(fake_api.look(50, Phase.DEGRADED), groups=(group(Phase.READY), group(other)))
    followed = follow_changes(script(degraded, failed()), ServiceManager(), None)
    assert followed.was_ready == is_ready


def group(phase):
    return GroupStatus(
        name=f"serve-{phase}",
        role="serve",
        phase=phase,
        attempt=1,
        endpoint="",
        created_at=0.0,
        phase_since=0.0,
    )


class Nodes:
    """A cluster whose nodes come one after the other; the clock moves with each sleep."""

    def __init__(self, *steps) -> None:
        self._steps = list(steps)
        self.now = 0.0
        self.reports: list[str] = []

    def list_alive(self):
        step = self._steps[0] if len(self._steps) == 1 else self._steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    def sleep(self, seconds):
        self.now += seconds

    def wait_for(self, *hosts, needed=2):
        watch = HostWatch(hosts, needed, self.list_alive, clock=lambda: self.now)
        return wait_for_hosts(watch, self.reports.append, sleep=self.sleep)


def test_hosts_that_come_within_30_s_are_not_reported():
    nodes = Nodes(*[{"192.0.2.10"}] * 10, {"192.0.2.10", "192.0.2.11"})
    assert nodes.wait_for("192.0.2.10", "192.0.2.11") == ""
    assert nodes.reports == []
    assert nodes.now == 20


def test_after_30_s_what_is_missing_is_reported_by_name_and_once():
    silent = [ClusterError("no Ray cluster answers")] * 20
    nodes = Nodes(*silent, *[{"192.0.2.10"}] * 9, {"192.0.2.10", "192.0.2.11"})
    waited = nodes.wait_for("192.0.2.10", "192.0.2.11")
    assert nodes.reports == [
        "waiting for the Ray cluster: no Ray cluster answers",
        "waiting for 192.0.2.11 to join the Ray cluster",
    ]
    assert waited == f"the start began after {nodes.now:.0f} s of {nodes.reports[-1]}"


def test_a_spare_host_that_is_missing_is_not_awaited():
    hosts = ("192.0.2.10", "192.0.2.11", "192.0.2.12")
    nodes = Nodes(*[{"192.0.2.10"}] * 20, {"192.0.2.10", "192.0.2.12"})
    nodes.wait_for(*hosts)
    assert nodes.reports == ["waiting for 1 of 192.0.2.11, 192.0.2.12 to join the Ray cluster"]


class Handle:
    name = "a2-dual"

    def __init__(self, *steps, adopted=False) -> None:
        self.steps = steps
        self.adopted = adopted
        self.was_stopped = False

    def stop(self):
        self.was_stopped = True


@pytest.fixture
def verbs(monkeypatch):
    """api.follow with its cluster replaced; returns what it does with a running and a new one."""
    monkeypatch.setattr(follow_verb, "_note_wait", lambda *_: None)

    alive = ("192.0.2.10", "192.0.2.11")

    def go(*steps, running=None, adopted=False, silences=0, list_alive=lambda _: alive):
        asked = []
        new = Handle(*steps, adopted=adopted)

        def find_running(name, address, *, patience_s, on_silence):
            asked.append(("find", name, address))
            for _ in range(silences):
                on_silence()
            return running

        def deploy(name, **given):
            asked.append(("deploy", name, given["deployment"], given["wait"], given["adopt"]))
            return new

        monkeypatch.setattr(follow_verb, "find_running", find_running)
        monkeypatch.setattr(follow_verb, "deploy", deploy)
        monkeypatch.setattr(
            follow_verb, "stop_running", lambda name, _: asked.append(("stop", name))
        )
        monkeypatch.setattr(follow_verb, "_list_alive", list_alive)
        monkeypatch.setattr(follow_verb, "_changes_of", lambda handle: script(*handle.steps))
        with pytest.raises((LaunchError, PlacementError, UnknownDeploymentError)) as error:
            follow_verb.follow("a2-dual", deployment="prod", await_hosts=alive)
        return asked, new, error.value

    return go


FIND = ("find", "prod", None)
DEPLOY = ("deploy", "a2-dual", "prod", False, True)


def test_a_deployment_that_runs_is_followed_and_not_started(verbs):
    asked, _, _ = verbs(running=Handle(fake_api.ready(), failed()))
    assert asked == [FIND]


def test_a_deployment_that_does_not_run_is_started(verbs):
    asked, new, _ = verbs(fake_api.ready(), failed())
    assert asked == [FIND, DEPLOY]
    assert not new.was_stopped, "status shows why it failed"


def test_a_found_deployment_that_fails_before_it_was_ready_is_started_anew_once(verbs):
    asked, new, error = verbs(failed(REFUSED), running=Handle(failed()))
    assert asked == [FIND, ("stop", "prod"), DEPLOY]
    assert isinstance(error, PlacementError)
    assert new.was_stopped


def test_a_found_deployment_that_is_being_stopped_is_not_started_anew(verbs):
    asked, _, error = verbs(running=Handle(fake_api.look(50, Phase.STOPPED)))
    assert asked == [FIND]
    assert isinstance(error, UnknownDeploymentError)


def test_servers_that_were_adopted_are_not_stopped_by_a_failure_before_readiness(verbs):
    _, new, _ = verbs(failed(REFUSED), adopted=True)
    assert not new.was_stopped


def test_a_start_that_was_never_ready_leaves_nothing(verbs):
    _, new, error = verbs(failed(REFUSED))
    assert new.was_stopped
    assert error.exit_code == PlacementError.exit_code


def test_the_last_notification_is_that_the_process_exits(verbs, systemd, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", systemd.address)
    verbs(fake_api.ready(), failed())
    assert systemd.received()[-1] == "STOPPING=1"
    assert "NOTIFY_SOCKET" not in os.environ


MISSING = "waiting for 192.0.2.11 to join the Ray cluster"


def test_a_host_that_a_start_waits_for_is_in_the_status_and_then_an_event(
    verbs, monkeypatch, tmp_path
):
    monkeypatch.setenv("RAYLAUNCH_HOME", str(tmp_path))
    monkeypatch.setattr(deployment_verbs, "_ask_cluster", lambda *_: None)
    shown, noted, waits = [], [], []

    def wait(_, report):
        waits.append(report)
        if len(waits) == 1:  # for the cluster alone
            return ""
        report(MISSING)
        shown.append(unknown_name("prod").what)
        shown.extend(one.what for one in deployment_verbs.overview("auto").silent)
        return f"the start began after 95 s of {MISSING}"

    monkeypatch.setattr(follow_verb, "wait_for_hosts", wait)
    monkeypatch.setattr(follow_verb, "_note_wait", lambda _, text: noted.append(text))
    verbs(fake_api.ready(), failed())
    assert [MISSING in text for text in shown] == [True, True]
    assert noted == [f"the start began after 95 s of {MISSING}"]
    assert MISSING not in unknown_name("prod").what
    assert deployment_verbs.overview("auto").silent == ()


def test_a_host_that_is_missing_while_the_controller_is_silent_is_named_too(
    verbs, systemd, monkeypatch, tmp_path
):
    """Ray restarts the controller after a power cut; it waits for nodes before it answers."""
    monkeypatch.setenv("RAYLAUNCH_HOME", str(tmp_path))
    monkeypatch.setenv("NOTIFY_SOCKET", systemd.address)
    monkeypatch.setattr(follower, "QUIET_S", 0.0)
    answers = [{"192.0.2.10"}] * 3  # the first is asked for the cluster alone
    shown = []

    def alive(_):
        shown.append(read_waiting(tmp_path, "prod"))
        return answers.pop() if answers else {"192.0.2.10", "192.0.2.11"}

    asked, _, _ = verbs(
        fake_api.ready(), failed(), running=Handle(failed()), silences=3, list_alive=alive
    )
    assert asked == [FIND, ("stop", "prod"), DEPLOY]
    assert systemd.received().count(f"STATUS={MISSING}") == 1
    assert shown[:4] == ["", "", MISSING, MISSING]
    assert read_waiting(tmp_path, "prod") == ""


def test_status_of_a_controller_that_does_not_know_the_missing_host_has_the_note(tmp_path):
    restarted = replace(fake_api.ready(), deployment="prod", phase=Phase.PENDING)
    assert add_awaited(restarted, tmp_path) == restarted
    with WaitingNote(tmp_path, "prod") as note:
        note.show(MISSING)
        (waits,) = add_awaited(restarted, tmp_path).waiting_for
        assert "192.0.2.11" in waits
        assert not waits.startswith("waiting")
        ready = replace(restarted, phase=Phase.READY)
        assert add_awaited(ready, tmp_path) == ready


def test_the_note_of_a_start_that_was_killed_does_not_count(tmp_path):
    with WaitingNote(tmp_path, "prod") as note:
        note.show("waiting for a host with a long name")
        note.show(MISSING)
        assert read_all_waiting(tmp_path) == {"prod": MISSING}
        path = tmp_path / "deployments" / "prod.waiting"
        kept = path.read_bytes()
    assert read_waiting(tmp_path, "prod") == ""
    path.write_bytes(kept)
    assert read_all_waiting(tmp_path) == {}, "no process has it locked"


def test_a_start_waits_also_where_no_note_can_be_written(tmp_path, caplog):
    (tmp_path / "deployments").write_text("a file")
    with WaitingNote(tmp_path, "prod") as note:
        note.show(MISSING)
    assert "cannot write" in caplog.text
    assert read_waiting(tmp_path, "prod") == ""


def test_follow_prints_what_it_waits_for_and_exits_with_the_deployments_code(cli, api):
    api.error = LaunchError("both servers exited")
    result = cli("start", "a2-dual", "--follow", "--await-host", "192.0.2.11")
    assert result.exit_code == LaunchError.exit_code
    assert "waiting for 192.0.2.11" in result.stderr
    assert "ready" in result.stdout
    assert api.asked[0][1]["await_hosts"] == ["192.0.2.11"]


@pytest.mark.parametrize(
    "words",
    [
        ["--follow", "--no-wait"],
        ["--follow", "--timeout", "5"],
        ["--follow", "--fresh"],
        ["--await-host", "::1"],
    ],
)
def test_options_that_contradict_each_other_are_refused(cli, api, words):
    assert cli("start", "a2-dual", *words).exit_code == 2
    assert not api.asked


def test_an_interrupt_leaves_the_deployment_and_exits_with_130(cli, api):
    api.error = KeyboardInterrupt()
    result = cli("start", "a2-dual", "--follow")
    assert result.exit_code == 130
    assert "a2-dual keeps running without this command" in result.stderr
