"""To come."""


def export() -> None:
    """To come."""
