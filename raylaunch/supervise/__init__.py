"""What to do next. Pure: no ray, sockets, clock or os.environ."""
