"""The command line: a thin shell over the public API."""

from vecferry.cli.app import app, main

__all__ = ["app", "main"]
