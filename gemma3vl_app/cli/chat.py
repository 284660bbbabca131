"""To come."""


def chat() -> None:
    """To come."""
