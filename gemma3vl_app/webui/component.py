"""Components that the page draws itself: a gr.HTML whose script draws plain values, text as text.

The values come from here, the script is one of `assets/`. Nothing of a value is ever markup: text
of people and models cannot become HTML, load anything or run anything.
"""

from __future__ import annotations

import html
from importlib import resources
from typing import Any
from urllib.parse import quote

import gradio as gr

FILE_ROUTE = "gradio_api/file="  # relative to the page, which may lie below a proxy's path


def drawn(name: str, attributes: str = "", **options: Any) -> gr.HTML:
    """Return the component that `assets/<name>.js` draws into an empty element of that class.

    Its script gets `props.value`, and triggers the events whose names stand in it.
    """
    return gr.HTML(
        None,
        html_template=f'<div class="{html.escape(name)}" {attributes}></div>',
        css_template="",
        js_on_load=asset("elements.js") + asset(f"{name}.js"),
        apply_default_css=False,
        elem_id=name,
        **options,
    )


def asset(name: str) -> str:
    """Return the text of a script or style of the page."""
    return resources.files("gemma3vl_app.webui").joinpath("assets", name).read_text("utf-8")


def file_url(path: str) -> str:
    """Return where the page finds a file of the server's private folder."""
    return FILE_ROUTE + quote(path)
