"""Words and pictures for a person at a terminal."""
