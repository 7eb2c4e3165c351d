"""Libraries, symbols and modules that are missing or do not fit."""
