"""Names and roles of groups. Agents import this, so it loads nothing."""

from __future__ import annotations

from typing import Literal

GroupRole = Literal["serve", "prefill", "decode"]
"""What the servers of a group do: whole requests, or one of the two phases of a request."""

DEFAULT_NAME = "serve"
"""Name of the groups of a recipe that names none."""

FIRST_GROUP = f"{DEFAULT_NAME}-0"
"""The only group of a recipe without `groups` and replicas."""

GATEWAY_GROUP = "gateway"
"""In the marker of the gateway's processes. The name of a group ends in a number."""
