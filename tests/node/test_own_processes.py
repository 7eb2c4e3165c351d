"""The tests' own cleaning up spares what another run of the tests, beside this one, has started."""

import os
import subprocess
import uuid

from own_processes import RUN, kill_own
from process_trees import PATIENCE_S, python


def test_processes_of_another_test_run_are_spared():
    name = f"test-{uuid.uuid4().hex}"
    started = {}
    for run in (os.environ[RUN], "another"):
        started[run] = subprocess.Popen(
            python("say('up'); sleep()"),
            env={"RAYLAUNCH_DEPLOYMENT": name, RUN: run},
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
        started[run].stdout.readline()
    own, other = started.values()
    try:
        kill_own(name)
        assert own.wait(PATIENCE_S) == -9
        assert other.poll() is None
    finally:
        for process in (own, other):
            with process:
                process.kill()
