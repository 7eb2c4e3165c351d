"""What a user may type as the name of a deployment, as a cluster's address, as the primary."""

from __future__ import annotations

import ipaddress
import re

from raylaunch.errors import ClusterError, RecipeError

MAX_NAME = 60
"""Characters of a deployment's name: it becomes part of file names (255 bytes) and socket paths."""

_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME - 1}}}")
_GROUP = re.compile(r"[a-z][a-z0-9]{0,19}-[0-9]{1,4}(\.g[0-9]{1,6})?")
_HOST = re.compile(r"\[[0-9A-Fa-f:.%A-Za-z]+\]|[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
_PORT = re.compile(r"[0-9]{1,5}")
_MAX_PORT = 65535


def is_name(text: str) -> bool:
    """Whether `text` can be the name of a deployment."""
    return _NAME.fullmatch(text) is not None


def checked_name(name: str, what: str = "a deployment") -> str:
    """Return `name` if it can be the name of a deployment (or of `what`).

    Raises:
        RecipeError: it is too long or has other characters.
    """
    if not is_name(name):
        raise RecipeError(
            f"{shortened(name)!r} cannot be the name of {what}",
            why="the name becomes part of paths and of a marker variable",
            todo="use ASCII letters, digits, '-', '_' and '.', beginning with a letter or digit, "
            f"at most {MAX_NAME}; --name gives another one than the recipe's",
        )
    return name


def split_target(text: str) -> tuple[str, str | None]:
    """Split "NAME/GROUP" into deployment and group; the group of "NAME" is None.

    What is neither comes back whole, for `is_name` to refuse.
    """
    name, slash, group = text.partition("/")
    if slash and _GROUP.fullmatch(group):
        return name, group
    return text, None


def is_target(text: str) -> bool:
    """Whether `text` can name a deployment or one of its groups, as "NAME/GROUP"."""
    return is_name(split_target(text)[0])


def check_address(address: str, source: str) -> None:
    """Refuse what cannot be the address of a Ray cluster.

    Args:
        address: HOST:PORT, "auto" or "local".
        source: Where it was given: "--address" or "RAY_ADDRESS".

    Raises:
        ClusterError: it is none of these.
    """
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    is_port = _PORT.fullmatch(port) is not None and 0 < int(port) <= _MAX_PORT
    if is_port and _HOST.fullmatch(host):
        return
    raise ClusterError(
        f"{source} {shortened(address)!r} is not the address of a Ray cluster",
        why="an address is HOST:PORT of the GCS, 6379 unless `ray start` was given another port",
        todo="`ray status` on the head shows it; IPv6 in brackets; `auto` is this machine's",
    )


def check_primary(primary: str | None) -> None:
    """Refuse a primary that is no IP address: nodes are known by theirs.

    Raises:
        RecipeError: it is not a literal IPv4 or IPv6 address.
    """
    if primary is None:
        return
    try:
        ipaddress.ip_address(primary)
    except ValueError as error:
        raise RecipeError(
            f"the primary {shortened(primary)!r} is not an IP address",
            why="Ray knows each node by its address, and so does the plan",
            todo="give the address that `ray status -v` shows; `getent hosts NAME` resolves a name",
        ) from error


def shortened(text: str, limit: int = 80) -> str:
    """Cut what a user typed to a length that an error message can quote."""
    return text if len(text) <= limit else f"{text[:limit]}..."
