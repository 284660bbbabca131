"""To come."""


def replay() -> None:
    """To come."""
