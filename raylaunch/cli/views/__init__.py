"""A plan, a recipe, a status as lines of text."""
