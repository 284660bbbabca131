"""Conversations, answers and plans in Jupyter: shown, streamed, and asked in a widget.

```python
import gemma3vl_app as gv

backend = gv.load("demo")
talk = gv.notebook.chat(backend)  # a chat below the cell; `talk.chat` is the `Chat` behind it
gv.notebook.show(gv.Chat(backend).stream("Hello"))  # an answer that grows below the cell
```

Values show themselves as the last line of a cell: the package's top tells IPython so.
"""

from gemma3vl_app.notebook.charts import bars, curves
from gemma3vl_app.notebook.live import show
from gemma3vl_app.notebook.looking import cost, grid, seen
from gemma3vl_app.notebook.shown import Shown
from gemma3vl_app.notebook.widget import ChatWidget, chat

__all__ = ["ChatWidget", "Shown", "bars", "chat", "cost", "curves", "grid", "seen", "show"]
