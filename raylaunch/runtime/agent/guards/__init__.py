"""The guard of a server as its agent sees it: events, adoption, notes for the next agent."""
