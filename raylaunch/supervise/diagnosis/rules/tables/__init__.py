"""Tables that the rules look things up in: packages, places, compilers, time-outs."""
