"""The relay: holds, repeats and continues the requests of clients."""
