"""A light load on an endpoint while a drill runs, in a thread of its own: how many requests, how many failed."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import Self

from raylaunch.errors import LaunchError

CLIENTS = 2
TOKENS = 4
PAUSE_S = 0.1
REQUEST_S = 60.0
FLOW_S = 60.0
"""How long the first answer may take."""
LAST_S = 15.0
"""What requests in flight are given to end when the load ends; later they count as failed."""


class Load:
    """Asks for a few tokens, again and again, from the entry of the `with` block to its end."""

    def __init__(self, endpoint: str, model: str, api_key: str | None) -> None:
        self._endpoint = endpoint
        self._model = model
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run()), name="drill-load", daemon=True
        )
        self._flows = threading.Event()
        self._ending = threading.Event()
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
        self._ending.set()
        self._thread.join()

    def await_flow(self) -> None:
        """Wait for the first answer.

        Raises:
            LaunchError: none came.
        """
        if not self._flows.wait(FLOW_S):
            raise LaunchError(
                f"{self._endpoint} answers no request of this machine within {FLOW_S:g} s",
                todo="run the drill where the endpoint can be reached; a key is taken from VLLM_API_KEY",
            )

    async def _run(self) -> None:
        import httpx

        limits = httpx.Timeout(REQUEST_S, connect=5.0)
        async with httpx.AsyncClient(
            headers=self._headers, timeout=limits, trust_env=False
        ) as client:
            clients = [asyncio.ensure_future(self._ask_on(client)) for _ in range(CLIENTS)]
            await asyncio.to_thread(self._ending.wait)
            _, late = await asyncio.wait(clients, timeout=LAST_S)
            self.failed += len(late)
            for task in late:
                task.cancel()

    async def _ask_on(self, client: object) -> None:
        while not self._ending.is_set():
            self.sent += 1
            if await self._answers(client):
                self._flows.set()
            else:
                self.failed += 1
            await asyncio.sleep(PAUSE_S)  # a light load: what it measures is the fault

    async def _answers(self, client: object) -> bool:
        import httpx

        assert isinstance(client, httpx.AsyncClient)
        body = {"model": self._model, "prompt": "hi", "max_tokens": TOKENS}
        try:
            return (await client.post(f"{self._endpoint}/completions", json=body)).is_success
        except httpx.HTTPError:
            return False
