"""A shell that runs nothing: words, statements, blocks, variables, conditions, arithmetic."""
