"""All controls, in the order of the table in docs/security.md; `run` takes them out."""

from __future__ import annotations

from tests.sabotage import api_controls, model_file_controls, page_controls, picture_controls
from tests.sabotage.control import Control

CONTROLS: tuple[Control, ...] = (
    *picture_controls.CONTROLS,
    *page_controls.CONTROLS,
    *model_file_controls.CONTROLS,
    *api_controls.CONTROLS,
)
