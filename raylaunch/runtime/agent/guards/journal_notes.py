"""The controller's journals in an agent's memory, and with its guard, which outlives the agent."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Mapping
from pathlib import Path

from raylaunch.errors import NodeError
from raylaunch.node.process.guard_socket import keep_note

log = logging.getLogger(__name__)


class JournalNotes:
    """The newest journal of each owner: a group, or "" for the whole deployment."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[int, bytes]] = {}
        self._unsaved: set[str] = set()
        self._changed = asyncio.Event()

    @property
    def journals(self) -> Mapping[str, bytes]:
        """The newest journal of each owner."""
        return {owner: journal for owner, (_, journal) in self._kept.items()}

    @property
    def is_saved(self) -> bool:
        """Whether a guard has the newest of each."""
        return not self._unsaved

    def keep(self, owner: str, number: int, journal: bytes) -> None:
        """Keep a journal, unless a newer one is there."""
        kept_number, _ = self._kept.get(owner, (-1, b""))
        if number > kept_number:
            self._kept[owner] = (number, journal)
            self._unsaved.add(owner)
            self._changed.set()

    def recall(self, notes: Mapping[str, tuple[int, str]]) -> None:
        """Take over what an earlier agent has left with the guard."""
        for owner, (number, text) in notes.items():
            self.keep(owner, number, base64.b64decode(text))

    async def save(self, guard: Path) -> None:
        """Leave the journals with a guard, each newest one, until cancelled."""
        self._unsaved = set(self._kept)
        while True:
            for owner in sorted(self._unsaved):
                number, journal = self._kept[owner]
                text = base64.b64encode(journal).decode()
                try:
                    await asyncio.to_thread(keep_note, guard, owner, number, text)
                except NodeError as error:  # its exit is reported by the guard's own events
                    log.info("the journal of %r is not with the guard: %s", owner, error)
                if self._kept[owner][0] == number:
                    self._unsaved.discard(owner)
            if self.is_saved:
                await self._changed.wait()
            self._changed.clear()
