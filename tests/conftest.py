"""What all tests share: a free port, a folder for logs that outlives a failure, and two guards.

The guards: a test run that leaves marked processes behind fails, and a `hosts` test that cannot run
says what it lacks.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from own_processes import RUN

from raylaunch.node.process.process_markers import find_marked
from raylaunch.plan.facts import MarkedProcess

LOGS = Path(__file__).resolve().parent.parent / "test-logs"
CI = os.environ.get("CI") == "true"
END_DEADLINE_S = 60.0
HOSTS_PROGRAMS = ("ip", "ping", "ssh", "sshd", "ssh-keygen", "rsync", "unshare")


def pytest_configure(config):
    """Mark this run: what the tests start inherits the variable, so runs side by side do not blame
    each other."""
    os.environ[RUN] = uuid.uuid4().hex
    # A call of Ray's API in a test without a cluster would start one, or wait for one that is gone.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    # A background job of a shell ignores SIGINT, one below nohup SIGHUP; what the tests start would
    # inherit it.
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_runtest_setup(item):
    if item.get_closest_marker("hosts") and (missing := _missing_for_hosts()):
        reason = f"a test with hosts of its own needs {', '.join(missing)}"
        pytest.fail(f"{reason} (CI skips nothing)", pytrace=False) if CI else pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        item.stash[_failed] = True
    return report


_failed = pytest.StashKey[bool]()


@pytest.fixture
def free_port() -> int:
    """A TCP port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def kept_logs(request) -> Iterator[Path]:
    """A folder test-logs/<test> that is removed when the test passes and stays when it fails."""
    folder = LOGS / re.sub(r"[^\w.-]+", "-", request.node.nodeid)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    yield folder
    if request.node.stash.get(_failed, False):
        print(f"logs of this run: {folder}")
    else:
        shutil.rmtree(folder)


@pytest.fixture(scope="session", autouse=True)
def leftovers() -> Iterator[None]:
    """Fail the run when processes with raylaunch's marker outlive it.

    They are named, not ended: they are evidence.
    """
    before = {process.pid for process in find_marked()}
    yield
    ours = [
        process for process in find_marked() if process.pid not in before and _is_ours(process.pid)
    ]
    if left := _wait_for_end(ours):
        lines = (
            f"  pid {process.pid} of {process.deployment}: {process.command}" for process in left
        )
        pytest.fail("the tests left processes behind:\n" + "\n".join(lines), pytrace=False)


def _is_ours(pid: int) -> bool:
    """Whether this run started the process.

    One that lost the run's mark can only be ours where nobody else works.
    """
    try:
        run = psutil.Process(pid).environ().get(RUN)
    except psutil.Error:
        return False
    alone = CI and "PYTEST_XDIST_WORKER" not in os.environ
    return run == os.environ[RUN] or (run is None and alone)


def _wait_for_end(processes: list[MarkedProcess]) -> list[MarkedProcess]:
    """What is still alive after the deadline: a process may be on its way out when the last test
    ends."""
    by_pid = {process.pid: process for process in processes}
    waited = [psutil.Process(pid) for pid in by_pid if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(waited, timeout=END_DEADLINE_S)
    return [by_pid[process.pid] for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@functools.cache
def _missing_for_hosts() -> tuple[str, ...]:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = tuple(program for program in HOSTS_PROGRAMS if not shutil.which(program, path=path))
    if os.geteuid() != 0:
        return (*missing, "root")
    if "unshare" not in missing and (refused := _refused_namespaces()):
        return (*missing, f"network namespaces ({refused})")
    return missing


def _refused_namespaces() -> str:
    done = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else ""
