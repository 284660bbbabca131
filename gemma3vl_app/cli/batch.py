"""To come."""


def batch() -> None:
    """To come."""
