"""To come."""


def doctor() -> None:
    """To come."""
