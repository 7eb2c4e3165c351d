"""The plan in other forms. Pure: returns files as text, the CLI writes them."""
