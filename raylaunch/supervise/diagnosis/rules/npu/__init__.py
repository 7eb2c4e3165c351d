"""Rules for what only Ascend installations write: containers, plug-in, operators, codes."""
