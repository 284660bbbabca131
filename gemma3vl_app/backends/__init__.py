"""Backends: one protocol (`protocol`), one engine in this process (`local`)."""
