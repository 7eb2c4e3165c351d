"""`python -m raylaunch` is `raylaunch`."""

from raylaunch.cli.app import program

program()
