"""A deployment as one page: its model and its HTML. Pure."""
