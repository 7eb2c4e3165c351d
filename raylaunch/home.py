"""raylaunch's folder of a user on one machine: records, tokens, code, models, bundles.

The only place that derives it. `runtime/cluster/code_store.py` repeats the rule: it runs where this
package is not installed yet.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from raylaunch.errors import NodeError


def home() -> Path:
    """Return the folder of the user of this process; see `home_of`."""
    return home_of(os.environ)


def home_of(env: Mapping[str, str]) -> Path:
    """Return $RAYLAUNCH_HOME, or ~/.raylaunch, for a process with this environment.

    Raises:
        NodeError: the variable is not set and the user has no home folder.
    """
    if named := env.get("RAYLAUNCH_HOME"):
        return Path(named)
    return user_home_of(env) / ".raylaunch"


def user_home_of(env: Mapping[str, str]) -> Path:
    """Return $HOME, or this user's home folder by the user database.

    Raises:
        NodeError: the user has none.
    """
    if named := env.get("HOME"):
        return Path(named)
    try:
        return Path.home()
    except RuntimeError as error:
        raise NodeError(
            "this user has no home folder", why=str(error), todo="set RAYLAUNCH_HOME"
        ) from error
