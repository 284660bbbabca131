"""Pictures pasted or dropped into the chat widget: the one thing ipywidgets cannot do itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gemma3vl_app.notebook.jupyter import needed

# Listens on the whole chat, so that a picture can be pasted where the question is written.
_SCRIPT = """
function render({ model, el }) {
  el.textContent = "Pictures can be pasted into the question, or dropped here.";
  el.style.cssText = "opacity:.75;font-size:.85em;padding:.2em 0";
  const send = async (event, files) => {
    const pictures = [...files].filter(file => file.type.startsWith("image/"));
    if (!pictures.length) return;
    event.preventDefault();
    event.stopPropagation();
    for (const file of pictures)
      model.send({ name: file.name || "pasted" }, undefined, [await file.arrayBuffer()]);
  };
  const paste = event => send(event, event.clipboardData?.files ?? []);
  const drop = event => send(event, event.dataTransfer?.files ?? []);
  const over = event => event.preventDefault();
  let chat = null;
  const timer = setTimeout(() => {
    chat = el.closest(".gemma3vl-chat") ?? el;
    chat.addEventListener("paste", paste);
    chat.addEventListener("drop", drop);
    chat.addEventListener("dragover", over);
  });
  return () => {
    clearTimeout(timer);
    chat?.removeEventListener("paste", paste);
    chat?.removeEventListener("drop", drop);
    chat?.removeEventListener("dragover", over);
  };
}
export default { render };
"""


def paste_area(take: Callable[[str, bytes], None]) -> Any:
    """Return a line of the widget that gives `take` the name and bytes of each picture."""
    anywidget: Any = needed("anywidget")

    def received(_: object, content: dict[str, Any], buffers: list[Any]) -> None:
        for buffer in buffers:
            take(str(content.get("name", "pasted")), bytes(buffer))

    area = type("PasteArea", (anywidget.AnyWidget,), {"_esm": _SCRIPT})()
    area.on_msg(received)
    return area
