"""CANN's `acl` as far as Ray asks it: a node with eight NPUs of an Atlas A2."""

import sys
from unittest.mock import MagicMock

rt = MagicMock(name="acl.rt")
rt.get_device_count = lambda: (8, 0)
sys.modules["acl.rt"] = rt


def get_soc_name() -> str:
    return "Ascend910B3"
