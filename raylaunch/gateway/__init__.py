"""One address in front of the groups: HAProxy as listener, a relay that holds and repeats."""
