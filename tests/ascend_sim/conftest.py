"""These tests run in an environment of their own: `make test-ascend`.

Elsewhere vllm-ascend is not installed and none of them is collected.
"""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("vllm_ascend") is None:
    collect_ignore_glob = ["test_*.py"]
