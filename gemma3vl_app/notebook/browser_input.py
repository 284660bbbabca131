"""What only a script in the browser can bring into the chat widget: files, and the Enter key.

ipywidgets takes no pasted or dropped pictures, and sends all chosen files in one message, which
Jupyter's server refuses above 10 MiB, without a word, by closing the connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gemma3vl_app.errors import PictureError
from gemma3vl_app.notebook.jupyter import needed
from gemma3vl_app.picture_decoding import check_bytes
from gemma3vl_app.pictures import DEFAULT_LIMITS, clean_name

# Listens on the whole chat, so that a picture can be pasted where the question is written. Before
# ipywidgets do: they keep keys to themselves.
_SCRIPT = """
const PIECE = 2 * 2 ** 20;  // bytes in a message

async function sendPictures(model, files) {
  for (const file of files) {
    const name = file.name || "pasted", bytes = file.size, id = Math.random();
    if (bytes > MOST_BYTES) {
      model.send({ name, bytes });
      continue;
    }
    for (let at = 0; at === 0 || at < bytes; at += PIECE) {
      const piece = await file.slice(at, at + PIECE).arrayBuffer();
      model.send({ id, name, last: at + PIECE >= bytes }, undefined, [piece]);
    }
  }
}

function addButton(model, el) {
  const picker = document.createElement("input");
  Object.assign(picker, { type: "file", accept: "image/*", multiple: true, hidden: true });
  picker.addEventListener("change", () => {
    sendPictures(model, [...picker.files]);
    picker.value = "";  // the same file can be chosen again
  });
  const button = document.createElement("button");
  button.className = "jupyter-widgets jupyter-button widget-button";
  button.textContent = "Pictures";
  button.addEventListener("click", () => picker.click());
  el.append(button, picker);
}

function render({ model, el }) {
  addButton(model, el);
  const take = (event, files) => {
    if (!files.length) return;
    event.preventDefault();
    event.stopPropagation();
    sendPictures(model, files);
  };
  const listeners = {
    paste: event =>
      take(event, [...event.clipboardData.files].filter(file => file.type.startsWith("image/"))),
    drop: event => take(event, [...event.dataTransfer.files]),
    dragover: event => event.preventDefault(),
    keydown: event => {
      const isEnter = event.key === "Enter" && !event.shiftKey && !event.isComposing;
      if (!isEnter || event.target.tagName !== "TEXTAREA") return;
      event.preventDefault();
      event.stopPropagation();
      model.send({ question: event.target.value });
    },
  };
  let chat = null;
  const timer = setTimeout(() => {
    chat = el.closest(".gemma3vl-chat") ?? el;
    for (const name in listeners) chat.addEventListener(name, listeners[name], true);
  });
  return () => {
    clearTimeout(timer);
    for (const name in listeners) chat?.removeEventListener(name, listeners[name], true);
  };
}
export default { render };
"""


def browser_input(
    *,
    take: Callable[[str, bytes], None],
    ask: Callable[[str], None],
    tell: Callable[[str], None],
) -> Any:
    """Return a button for pictures, which brings in what is pasted and dropped around it, too.

    `take` gets the name and bytes of each file, `ask` the question when Enter is pressed in it,
    and `tell` a line about a file that is too large, which is not sent at all.
    """
    anywidget: Any = needed("anywidget")
    pieces: dict[float, list[bytes]] = {}  # of files that are on their way

    def received(_: object, content: dict[str, Any], buffers: list[Any]) -> None:
        if "question" in content:
            ask(str(content["question"]))
        elif "bytes" in content:
            tell(_too_large(str(content["name"]), int(content["bytes"])))
        else:
            pieces.setdefault(content["id"], []).extend(map(bytes, buffers))
            if content["last"]:
                take(str(content["name"]), b"".join(pieces.pop(content["id"])))

    script = _SCRIPT.replace("MOST_BYTES", str(DEFAULT_LIMITS.max_bytes))
    area = type("BrowserInput", (anywidget.AnyWidget,), {"_esm": script})()
    area.on_msg(received)
    return area


def _too_large(name: str, bytes: int) -> str:
    try:
        check_bytes(bytes, clean_name(name), DEFAULT_LIMITS)
    except PictureError as error:
        return str(error)
    return ""
