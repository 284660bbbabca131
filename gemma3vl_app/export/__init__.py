"""A chat as a page, as Markdown, as a notebook that asks it again, and as training data.

```python
from gemma3vl_app.export import export

export(chat.transcript, "circle.html")  # or .md, .ipynb, .jsonl
```

Everything that comes from people, models and files is text in the result: no markup of theirs takes
effect, nothing is loaded from elsewhere, and pictures leave without metadata.
"""

from gemma3vl_app.export.kinds import KINDS as KINDS
from gemma3vl_app.export.kinds import check_suffix as check_suffix
from gemma3vl_app.export.kinds import export as export
from gemma3vl_app.export.write import Exported as Exported
