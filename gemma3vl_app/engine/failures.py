"""What becomes of an error in one request: words for whoever asked, the rest for the log."""

from __future__ import annotations

import logging

import torch

from gemma3vl_app.errors import EngineError, Gemma3VLError, MemoryLimitError

logger = logging.getLogger(__name__)


class NotANumberError(EngineError):
    """The model's output is not a number: what it was computed from must not be kept."""

    def __init__(self) -> None:
        super().__init__(
            "The model's output is not a number, so this answer was ended. "
            "If it happens again, load the model with weights='fp32'."
        )


def as_told(error: Exception) -> Gemma3VLError:
    """Return an error fit for people; logs what only a developer can use."""
    if isinstance(error, Gemma3VLError):
        # Its traceback would keep alive what the frames hold, the model among it.
        return error.with_traceback(None)
    if is_out_of_memory(error):
        return MemoryLimitError(
            "Memory ran out while computing this answer. Use fewer or smaller pictures, "
            "switch crops off, shorten the conversation, or load a smaller precision."
        )
    logger.error("a request failed inside the engine", exc_info=error)
    if is_device_lost(error):
        return EngineError(
            "The GPU has failed and computes nothing more for this program. "
            "The log has its words; start the program again."
        )
    return EngineError(
        f"This answer failed inside the engine ({type(error).__name__}); "
        "others go on. The log has the details; please try again."
    )


def is_device_lost(error: BaseException) -> bool:
    """Tell errors after which everything on the GPU fails, until the process ends.

    CUDA calls them sticky: an illegal address, a failed assertion, a fault of the hardware. Others,
    such as a launch that was refused, come once; only the next call can tell which it was.
    """
    if not isinstance(error, torch.AcceleratorError):
        return False
    try:
        torch.accelerator.synchronize()
    except RuntimeError:
        return True
    return False


def needs_empty_caches(error: Exception) -> bool:
    """Tell errors after which what is cached has to go: it takes the memory, or may be nonsense."""
    return isinstance(error, NotANumberError) or is_out_of_memory(error)


def is_out_of_memory(error: Exception) -> bool:
    """Tell exhausted memory from other failures; torch's CPU allocator has no own class."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )
