"""The command line: one small file a command."""

from robench.cli.main import main

__all__ = ["main"]
