"""Why this answer: where the model looked, what the answer hangs on, how sure it was.

```python
import gemma3vl_app as gv

backend = gv.load("demo")
chat = gv.Chat(backend, sampling=gv.Greedy())
answer = chat.ask("What color is the circle?", images=["scene.png"])
gv.explain.occlusion(backend, chat.conversation, answer, "Red")  # a map over the picture
gv.explain.tokens(backend, chat.conversation, answer)  # how sure, word by word
```

Each result says in a line what it shows and what it does not. docs/explain.md has the formulas.
"""

from gemma3vl_app.explain.certainty import Certainty, next, tokens
from gemma3vl_app.explain.difference import Difference, Side, compare
from gemma3vl_app.explain.heat import Heat, HeatMap
from gemma3vl_app.explain.lens import Layers, layers
from gemma3vl_app.explain.looking import attention, occlusion, saliency

__all__ = [
    "Certainty",
    "Difference",
    "Heat",
    "HeatMap",
    "Layers",
    "Side",
    "attention",
    "compare",
    "layers",
    "next",
    "occlusion",
    "saliency",
    "tokens",
]
