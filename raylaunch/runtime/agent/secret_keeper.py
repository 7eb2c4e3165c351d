"""The secrets of a deployment in an agent's memory, for the controller that Ray restarts."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from raylaunch.errors import NodeError


@dataclass(frozen=True)
class SecretKeeper:
    """Secrets, and the key that they are handed out for. Neither is part of the `repr`.

    Every driver with the cluster's token can call an agent; the key is its controller's alone.
    """

    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    takeover_key: str = field(default="", repr=False)

    @classmethod
    def recall(cls, memo: Mapping[str, str]) -> SecretKeeper:
        """Restore what `memo` wrote; empty if it is not there."""
        secrets = json.loads(memo.get("secrets", "{}"))
        return cls(secrets, memo.get("takeover_key", ""))

    def memo(self) -> Mapping[str, str]:
        """Return what the guard of a server keeps in its memory for a later agent."""
        return {"secrets": json.dumps(dict(self.secrets)), "takeover_key": self.takeover_key}

    def hand_out(self, takeover_key: str) -> Mapping[str, str]:
        """Return the secrets for the right key.

        Raises:
            NodeError: the key is another one, or nothing was handed over yet.
        """
        own = self.takeover_key.encode()
        if not own or not hmac.compare_digest(own, takeover_key.encode()):
            raise NodeError(
                "an agent hands out the secrets of a deployment to its own controller only",
                why="the takeover key is wrong",
                todo="clients read VLLM_API_KEY from their own environment",
            )
        return self.secrets
