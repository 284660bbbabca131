"""To come."""


def caption() -> None:
    """To come."""


def ocr() -> None:
    """To come."""


def compare() -> None:
    """To come."""


def extract() -> None:
    """To come."""
