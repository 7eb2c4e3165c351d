"""Lets vLLM inspect the class of a model in a fork, where it would start another Python.

Part of `ask_vllm.py`: runs in vLLM's own Python, and needs only the standard library and that vLLM.

vLLM inspects a class in a process of its own, so that its own process opens no device, and caches
the answer (vLLM 0.23 and 0.32 model_executor/models/registry.py). That process imports vLLM and its
plug-ins again: half of the time that the first dry run of a model takes. A fork has them already.
"""

import importlib
import os
import pickle
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn, TypeVar

Result = TypeVar("Result")

REGISTRY = "vllm.model_executor.models.registry"
FUNCTION = "_run_in_subprocess"


def install() -> None:
    """Change vLLM's registry. A vLLM that has it elsewhere starts its process as before."""
    try:
        registry = importlib.import_module(REGISTRY)
    except ImportError:
        return
    if hasattr(registry, FUNCTION):
        setattr(registry, FUNCTION, run_in_fork)


def run_in_fork(inspect: Callable[[], Result]) -> Result:
    """Return what `inspect` returns in a fork of this process.

    Raises:
        RuntimeError: It raised, with the text that vLLM gives it, or the fork died.
    """

    def answer() -> bytes:
        try:
            return pickle.dumps(("", inspect()))
        except BaseException:  # noqa: BLE001 - whatever vLLM raises is its answer
            return pickle.dumps((traceback.format_exc(), None))

    text, status = read_from_fork(answer)
    if not text:
        raise RuntimeError(f"Error raised in subprocess:\nwait status {status}")
    # Written by the fork above; no one else has the other end.
    failure, value = pickle.loads(text)  # noqa: S301
    if failure:
        raise RuntimeError(f"Error raised in subprocess:\n{failure}")
    result: Result = value
    return result


def read_from_fork(answer: Callable[[], bytes]) -> tuple[bytes, int]:
    """Return what a fork of this process answers, and its wait status. b"": it died first."""
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _write_and_exit(answer, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    return text, status


def _write_and_exit(answer: Callable[[], bytes], pipe: int) -> NoReturn:
    """Write the answer; nothing of the caller's stack runs on."""
    code = 1
    try:
        text = answer()
        with os.fdopen(pipe, "wb") as out:
            out.write(text)
        code = 0
    except BaseException:  # noqa: BLE001 - the fork ends here
        traceback.print_exc()
    finally:
        os._exit(code)
