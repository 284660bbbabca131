"""What gradio would do by itself and does not here; that the page is the same without it."""

import os
import sys
import tempfile

import pytest
from gradio.state_holder import StateHolder

from gemma3vl_app.testing import ScriptedBackend
from gemma3vl_app.webui.desk import Desk
from gemma3vl_app.webui.page import build_page
from gemma3vl_app.webui.quiet_gradio import keep_gradio_quiet


@pytest.fixture(scope="module")
def page():
    return build_page(Desk.set_up(ScriptedBackend, keep_gradio_quiet()))


def test_the_libraries_below_are_told_to_tell_nobody_anything(page):
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] in ("1", "True")
    assert page.analytics_enabled is False


def test_uploads_go_to_a_folder_that_goes_with_the_process(monkeypatch, tmp_path):
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = keep_gradio_quiet()
    assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
    assert folder.parent.name.startswith("gemma3vl-uploads-") and (folder.parent / "lock").exists()
    assert keep_gradio_quiet() == folder


def test_nobody_adds_up_who_asked_what(page):
    queue = page._queue
    queue.events_recorded = 1000
    notes = [{"function": "ask", "status": "success", "process_time": 1.0}] * 1000
    assert queue.compute_analytics_summary(notes) == {"functions": {}}
    assert queue.ANALYTICS_MAX_EVENTS == 1


def test_components_are_described_for_somebody_only_once_they_change(page):
    holder = StateHolder()
    holder.set_blocks(page)
    session = holder["somebody"]
    assert list(session.components) == []
    box = next(each for each in page.blocks.values() if getattr(each, "elem_id", "") == "composer")
    session._update_value_in_config(box._id, {"text": "Hello"})
    (described,) = session.components
    assert (described["id"], described["props"]["value"]) == (box._id, {"text": "Hello"})
    assert session[box._id] is box


def test_no_step_of_an_answer_looks_for_matplotlib(page, monkeypatch):
    import gradio.utils

    monkeypatch.setitem(sys.modules, "matplotlib", None)  # an import would raise
    with gradio.utils.MatplotlibBackendMananger():
        pass
    assert "Matplotlib" not in type(gradio.utils.MatplotlibBackendMananger()).__name__
