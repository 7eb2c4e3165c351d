"""A shell without a machine: text to words, statements, blocks; variables, conditions, arithmetic."""
