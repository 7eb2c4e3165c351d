"""The recipes that serve while a node is lost: their own mistakes, before one is needed."""
