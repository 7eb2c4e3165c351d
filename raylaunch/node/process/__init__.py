"""The process tree of a server on this machine: guard, log files, markers, orphans."""
