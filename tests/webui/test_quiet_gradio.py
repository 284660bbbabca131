"""What gradio would do by itself and does not here; that the page is the same without it."""

import inspect
import sys

import pytest

from gemma3vl_app.testing import ScriptedBackend
from gemma3vl_app.webui.desk import Desk
from gemma3vl_app.webui.page import build_page
from gemma3vl_app.webui.quiet_gradio import keep_gradio_quiet


@pytest.fixture(scope="module")
def page():
    return build_page(Desk.set_up(ScriptedBackend, keep_gradio_quiet()))


def test_nobody_adds_up_who_asked_what(page):
    queue = page._queue
    queue.events_recorded = 1000
    notes = [{"function": "ask", "status": "success", "process_time": 1.0}] * 1000
    assert queue.compute_analytics_summary(notes) == {"functions": {}}
    assert queue.ANALYTICS_MAX_EVENTS == 1


def test_what_components_take_is_worked_out_once_and_rightly(page):
    for block in page.blocks.values():
        made_by = type(block).__init__
        remembered = vars(made_by).pop("__signature__")
        assert remembered == inspect.signature(made_by)
        made_by.__signature__ = remembered


def test_no_step_of_an_answer_looks_for_matplotlib(page, monkeypatch):
    import gradio.utils

    monkeypatch.setitem(sys.modules, "matplotlib", None)  # an import would raise
    with gradio.utils.MatplotlibBackendMananger():
        pass
    assert "Matplotlib" not in type(gradio.utils.MatplotlibBackendMananger()).__name__
