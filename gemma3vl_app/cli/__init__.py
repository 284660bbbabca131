"""The command line: a page in the browser, a question, what models need, what is on disk."""

from gemma3vl_app.cli.main import main

__all__ = ["main"]
