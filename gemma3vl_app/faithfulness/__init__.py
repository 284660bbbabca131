"""Is it still the same model? Two of them, or one in every form and on every path, compared.

`verify(a, b)` compares two checkpoints, `verify_paths(source)` what this machine makes of one.
Names are fetched when first used: whoever only reads a result does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemma3vl_app.faithfulness.path_results import PathsVerification
    from gemma3vl_app.faithfulness.paths import verify_paths
    from gemma3vl_app.faithfulness.results import Verification
    from gemma3vl_app.faithfulness.two_models import verify

__all__ = ["PathsVerification", "Verification", "verify", "verify_paths"]
_HOMES = {
    "PathsVerification": "path_results",
    "Verification": "results",
    "verify": "two_models",
    "verify_paths": "paths",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
