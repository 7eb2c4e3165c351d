"""The one place that calls a Ray actor: each call is typed by the method that it runs.

A handle (`AgentHandle`, `ControllerClient`, ...) holds a `RemoteActor` and has one method per
remote method. It passes the method itself, not its name, so a type checker sees a renamed or
changed remote method, and "go to definition" leads from the caller to the code on the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from raylaunch.errors import ClusterError, RaylaunchError

log = logging.getLogger(__name__)

A = TypeVar("A")
P = ParamSpec("P")
T = TypeVar("T")
RemoteMethodCall = Callable[P, Coroutine[Any, Any, T]]
RemoteMethod = Callable[Concatenate[A, P], Coroutine[Any, Any, T]]

RETRY_PAUSE_S = 0.2
"""Between two tries while Ray restarts an actor: it does not report when it is done."""
SLOW_CALL_S = 5.0
"""A call that took longer than this, and was not asked to wait, is logged."""


class MethodNames:
    """Stands in at run time for a class of which a client needs only the names of its methods.

    A type checker sees the real class instead: import that under TYPE_CHECKING, this otherwise.
    """

    def __getattr__(self, name: str) -> object:
        return SimpleNamespace(__name__=name)


class ActorError(ClusterError):
    """A remote call got no answer."""


class ActorLostError(ActorError):
    """The actor is dead, and Ray will not restart it."""


class ActorKilledError(ActorLostError):
    """The actor was ended on purpose, by `ray.kill`."""


class ActorUnavailableError(ActorError):
    """Ray has no connection to the actor at the moment: it restarts, or the network is cut."""


class ActorTimeoutError(ActorError):
    """The actor did not answer in time."""


class RemoteFailureError(ClusterError):
    """The remote method raised an error that raylaunch does not raise on purpose."""


@dataclass(frozen=True)
class RemoteActor(Generic[A]):
    """A Ray actor handle together with the class that it runs.

    Args:
        actor: Ray's handle.
        peer: Who it is, for messages: "the agent of server 1".
    """

    actor: Any
    peer: str

    def call(self, method: RemoteMethod[A, P, T], *, timeout_s: float) -> RemoteMethodCall[P, T]:
        """Call `method` and await its result: `await remote.call(Agent.hello, timeout_s=5)()`.

        The returned function raises:
            RaylaunchError: what the remote method itself raised on purpose.
            ActorLostError, ActorUnavailableError, ActorTimeoutError: no answer.
            RemoteFailureError: a bug in the remote method, with its traceback as evidence.
        """

        async def run(*args: P.args, **kwargs: P.kwargs) -> T:
            started = time.monotonic()
            try:
                async with asyncio.timeout(timeout_s):
                    result: T = await getattr(self.actor, method.__name__).remote(*args, **kwargs)
            except Exception as error:
                explained = self._explain(method.__name__, error, timeout_s)
                if explained is error:
                    raise
                raise explained from error
            self._log_slow(method.__name__, started)
            return result

        return run

    def ask(self, method: RemoteMethod[A, P, T], *, timeout_s: float) -> Callable[P, T]:
        """As `call`, but blocking, for a process without an event loop.

        Waits while Ray restarts the actor. The returned function raises as that of `call`;
        ActorUnavailableError only after `timeout_s`.
        """

        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            deadline = time.monotonic() + timeout_s
            while True:
                try:
                    return self._get(method, deadline, *args, **kwargs)
                except ActorUnavailableError:
                    if time.monotonic() >= deadline:
                        raise
                    time.sleep(RETRY_PAUSE_S)

        return run

    def send(self, method: RemoteMethod[A, P, T]) -> Callable[P, None]:
        """Call `method` without waiting for the result or for an error."""

        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            getattr(self.actor, method.__name__).remote(*args, **kwargs)

        return run

    def kill(self) -> None:
        """Kill the actor process; Ray does not restart it."""
        import ray

        ray.kill(self.actor, no_restart=True)

    def _get(
        self, method: RemoteMethod[A, P, T], deadline: float, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        import ray

        started = time.monotonic()
        patience_s = max(0.1, deadline - started)
        try:
            pending = getattr(self.actor, method.__name__).remote(*args, **kwargs)
            result: T = ray.get(pending, timeout=patience_s)
        except Exception as error:
            explained = self._explain(method.__name__, error, patience_s)
            if explained is error:
                raise
            raise explained from error
        self._log_slow(method.__name__, started)
        return result

    def _log_slow(self, method: str, started: float) -> None:
        took_s = time.monotonic() - started
        if took_s >= SLOW_CALL_S:
            log.debug("%s took %.1f s to answer %s", self.peer, took_s, method)

    def _explain(self, method: str, error: Exception, timeout_s: float) -> Exception:
        """Ray's error as one of ours; an error that did not come from Ray is returned unchanged."""
        from ray import exceptions

        # Ray delivers an error of the remote method as a RayTaskError that carries it. The carried
        # error comes first: a RayTaskError of one of our errors is of that class too, but its text
        # is a traceback.
        cause = getattr(error, "cause", None)
        for known in (cause, error):
            if isinstance(known, RaylaunchError):
                return known
        text = str(error).strip()
        reason = text.splitlines()[0] if text else type(error).__name__
        log.debug("%s did not answer %s: %s", self.peer, method, reason)
        if isinstance(error, exceptions.ActorUnavailableError):
            return ActorUnavailableError(
                f"{self.peer} cannot be reached ({method})", why=reason, todo=_LOOK
            )
        if isinstance(error, exceptions.RayActorError):
            lost = ActorKilledError if _KILLED in text else ActorLostError
            return lost(f"{self.peer} is dead ({method})", why=reason, todo=_LOOK)
        if isinstance(error, TimeoutError | exceptions.GetTimeoutError):
            return ActorTimeoutError(
                f"{self.peer} did not answer within {timeout_s:.0f} s ({method})", todo=_LOOK
            )
        if isinstance(error, exceptions.RayTaskError):
            return RemoteFailureError(
                f"{self.peer} failed in {method}", why=repr(cause or error), evidence=text
            )
        if isinstance(error, exceptions.RayError):
            return ActorError(f"{self.peer} did not answer ({method})", why=reason, todo=_LOOK)
        if isinstance(error, AttributeError):
            # Ray's handle has the methods of the class that the actor was started with.
            return ActorError(
                f"{self.peer} was started by another version of raylaunch",
                why=f"it has no {method}",
                todo="use that version, or stop the deployment and start it again",
            )
        return error


@contextlib.contextmanager
def explained_ray_errors(what: str) -> Iterator[None]:
    """Raise an error of Ray itself, as of a GCS that does not answer, as one of ours.

    Raises:
        ActorError: Ray did not do what was asked of it.
    """
    from ray import exceptions

    try:
        yield
    except exceptions.RayError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ActorError(f"Ray did not answer ({what})", why=reason, todo=_LOOK) from error


_KILLED = "it was killed by `ray.kill`"
"""Ray's words (seen with 2.60); an actor that is killed to be restarted is unavailable instead."""
_LOOK = (
    "`ray status` shows whether its node is alive; `raylaunch logs NAME --controller` and Ray's "
    "session folder on that node hold its log"
)
