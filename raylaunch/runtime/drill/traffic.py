"""Light traffic on an endpoint during a drill, in a thread of its own; counts failed requests."""

from __future__ import annotations

import asyncio
import logging
import threading
from types import TracebackType
from typing import Self

from raylaunch.errors import LaunchError

log = logging.getLogger(__name__)

CLIENTS = 2
TOKENS = 4
PAUSE_S = 0.1
"""Of a client between two requests: the drill measures the fault, not the load."""
REQUEST_S = 60.0
CONNECT_S = 5.0
FIRST_ANSWER_S = 60.0
LAST_ANSWER_S = 15.0
"""For the requests in flight when the traffic stops; later they count as failed."""


class Traffic:
    """Requests a few tokens, again and again, inside a `with` block.

    Args:
        endpoint: Base URL of the API, with /v1.
        model: The served name.
        api_key: Of the service; None without one.
        patience_s: A request without an answer for so long has failed.
    """

    def __init__(
        self, endpoint: str, model: str, api_key: str | None, patience_s: float = REQUEST_S
    ) -> None:
        self._endpoint = endpoint
        self._model = model
        self._patience_s = patience_s
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run()),
            name="drill-traffic",
            daemon=True,
        )
        self._answered = threading.Event()
        self._stopping = threading.Event()
        self.sent = 0
        self.failed = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._thread.join()
        log.info("%d of %d requests failed", self.failed, self.sent)

    def await_first_answer(self) -> None:
        """Wait for the first answer.

        Raises:
            LaunchError: none came within FIRST_ANSWER_S.
        """
        if not self._answered.wait(FIRST_ANSWER_S):
            raise LaunchError(
                f"{self._endpoint} answers no request of this machine within {FIRST_ANSWER_S:g} s",
                todo="run the drill on a machine that reaches the endpoint; "
                "if it needs an API key, set VLLM_API_KEY",
            )

    async def _run(self) -> None:
        import httpx

        limits = httpx.Timeout(self._patience_s, connect=CONNECT_S)
        async with httpx.AsyncClient(
            headers=self._headers,
            timeout=limits,
            trust_env=False,  # a proxy of the environment would be measured, too
            verify=False,  # noqa: S501 - the drill measures whether an answer comes
        ) as client:
            clients = [asyncio.ensure_future(self._send_all(client)) for _ in range(CLIENTS)]
            await asyncio.to_thread(self._stopping.wait)
            _, late = await asyncio.wait(clients, timeout=LAST_ANSWER_S)
            self.failed += len(late)
            for task in late:
                task.cancel()

    async def _send_all(self, client: object) -> None:
        while not self._stopping.is_set():
            self.sent += 1
            if await self._is_answered(client):
                self._answered.set()
            else:
                self.failed += 1
            await asyncio.sleep(PAUSE_S)

    async def _is_answered(self, client: object) -> bool:
        import httpx

        assert isinstance(client, httpx.AsyncClient)
        body = {"model": self._model, "prompt": "hi", "max_tokens": TOKENS}
        try:
            response = await client.post(f"{self._endpoint}/completions", json=body)
        except httpx.HTTPError as error:
            log.debug("a request failed: %r", error)
            return False
        return response.is_success
