"""Remembers which member has seen which prompt prefix, so that its KV cache is used again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Collection

BLOCK_BYTES = 4096
"""About a thousand tokens. Shorter prompts share no block: their prefill is cheap anyway."""
MAX_BLOCKS = 4096
"""Blocks of one prompt that count: 16 MB."""
MAX_ENTRIES = 200_000


def prefix_hashes(prompt: bytes) -> list[bytes]:
    """Return one hash for each whole block of the prompt; each covers all blocks before it."""
    whole = min(len(prompt) // BLOCK_BYTES, MAX_BLOCKS)
    running = hashlib.blake2b(digest_size=8)
    hashes = []
    for number in range(whole):
        start = number * BLOCK_BYTES
        running.update(prompt[start : start + BLOCK_BYTES])
        hashes.append(running.copy().digest())
    return hashes


class PrefixIndex:
    """The least recently used prefixes are forgotten first."""

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._member_of: OrderedDict[bytes, str] = OrderedDict()

    def find(self, hashes: list[bytes], members: Collection[str]) -> str | None:
        """Return the member that saw the longest prefix; None when none of them did."""
        for prefix in reversed(hashes):
            member = self._member_of.get(prefix)
            if member in members:
                return member
        return None

    def add(self, hashes: list[bytes], member: str) -> None:
        """Note that this member computes the prompt."""
        for prefix in hashes:
            self._member_of[prefix] = member
            self._member_of.move_to_end(prefix)
        while len(self._member_of) > self._max_entries:
            self._member_of.popitem(last=False)

    def __len__(self) -> int:
        return len(self._member_of)
