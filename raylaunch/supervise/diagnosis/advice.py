"""What a message itself advises: "please try to decrease X", "consider setting Y"."""

from __future__ import annotations

import re

from raylaunch.supervise.diagnosis.readings import shorten

_ADVICE = re.compile(
    r"\b((?:[Tt]o fix(?: this)?[:,]|"
    r"[Pp]lease|[Tt]ry|[Cc]onsider|[Mm]ake sure|[Ee]nsure|[Tt]ake a try|"
    r"[Yy]ou (?:can|may|need|should|must)|[Ii]f you want to|(?:[Ii]n|[Dd]e)crease|"
    r"(?:[Rr]un|[Uu]se|[Ss]et) (?:`|--))"
    r"[^\n]{6,300}?)(?:[.!](?=\s|$)|$)",
    re.MULTILINE,
)
_SAYS_NOTHING = re.compile(
    r"stack ?trace|root cause|report (?:this|a|the)|open an issue|contact|ASCEND_LAUNCH_BLOCKING|"
    r"for more (?:information|details)|accurate|again later|"
    # To the one who wrote the code.
    r"set_forward_context|set_current_vllm_config|\.cpu\(\)|\.contiguous\(\)"
)


def read_advice(message: str) -> str:
    """Return the first sentence in which a message advises something; "" when none does."""
    for found in _ADVICE.finditer(message):
        if not _SAYS_NOTHING.search(found[1]):
            return shorten(found[1].strip(), 200)
    return ""
