"""The errors people see: what happened, to which input, and what to do next."""

from __future__ import annotations

import logging

_log = logging.getLogger(__name__)


class Gemma3VLError(Exception):
    """Base of every error this package raises on purpose; its text is fit to show to a user.

    `public` is what people may read whom that user serves: without the addresses of other servers
    and without their words. It is the text itself where that has neither.
    """

    def __init__(self, message: str = "", *, public: str | None = None) -> None:
        super().__init__(message)
        self.public = message if public is None else public


def public_text(error: Gemma3VLError) -> str:
    """Return what everybody may read of an error; what they may not goes to the log."""
    if error.public != str(error):
        _log.warning("%s", error)
    return error.public


class PictureError(Gemma3VLError):
    """A picture cannot be read or breaks a limit; the message names the file and the limit."""


class ConversationError(Gemma3VLError):
    """A conversation or an option of a request is not valid."""


class ContextLengthError(ConversationError):
    """The prompt does not fit into the model's context."""


class LoadError(Gemma3VLError):
    """A model cannot be found, read, verified or placed in memory."""


class BusyError(Gemma3VLError):
    """More requests are waiting than the engine accepts; try again later."""


class MemoryLimitError(Gemma3VLError):
    """Memory ran out for one request; the message advises what to make smaller."""


class EngineError(Gemma3VLError):
    """One request failed inside the engine, or the engine is closed."""


class ModelUnavailableError(EngineError):
    """No server of a model can be reached, or it is not ready; try again later."""


class RecipeError(Gemma3VLError):
    """A fine-tuning recipe cannot be read, or states what makes no sense; names the field."""


class TrainingError(Gemma3VLError):
    """A training cannot start, go on or end as its recipe asks."""


class TrainingDataError(TrainingError):
    """Training data cannot be used; the message counts and names the first items of each kind."""


class ConversionError(Gemma3VLError):
    """Weights cannot be written in another form; what was there before is untouched."""


class EvaluationError(Gemma3VLError):
    """An evaluation's data cannot be used, or two runs cannot be compared; names the first rows."""


class StoreError(Gemma3VLError):
    """Conversations cannot be read from or written to the disk; what was saved before is kept."""


class UnknownConversationError(StoreError):
    """This owner has no conversation of that id."""


class VerificationError(Gemma3VLError):
    """Models cannot be compared, or what they shall be asked cannot be used."""
