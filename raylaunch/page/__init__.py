"""A deployment as one page: its model, its timelines, its HTML. Pure."""
