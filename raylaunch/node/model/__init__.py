"""The weights on this machine: files, downloads, page cache."""
