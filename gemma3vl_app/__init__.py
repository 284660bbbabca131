"""Use and understand Gemma 3 vision-language models; this page is the table of contents.

```python
import gemma3vl_app as gv

print(gv.plan("27b-it", max_memory={"cuda:0": "24GiB"}).weights)  # what would fit, before loading
chat = gv.Chat(gv.load("demo"))
print(chat.ask("What is in this picture?", images=["a.png"]).text)
```

Every name is fetched from its module when it is first used, so that the import itself stays light:
neither torch nor gradio is loaded by it.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:  # the same names for type checkers and editors; a test keeps both in step
    from gemma3vl_app import explain as explain
    from gemma3vl_app import notebook as notebook
    from gemma3vl_app.backends.load import load as load
    from gemma3vl_app.backends.protocol import Backend as Backend
    from gemma3vl_app.backends.protocol import Capabilities as Capabilities
    from gemma3vl_app.chat import Chat as Chat
    from gemma3vl_app.conversion.converting import Bridge as Bridge
    from gemma3vl_app.conversion.converting import convert as convert
    from gemma3vl_app.errors import BusyError as BusyError
    from gemma3vl_app.errors import ContextLengthError as ContextLengthError
    from gemma3vl_app.errors import ConversationError as ConversationError
    from gemma3vl_app.errors import ConversionError as ConversionError
    from gemma3vl_app.errors import EngineError as EngineError
    from gemma3vl_app.errors import EvaluationError as EvaluationError
    from gemma3vl_app.errors import Gemma3VLError as Gemma3VLError
    from gemma3vl_app.errors import LoadError as LoadError
    from gemma3vl_app.errors import MemoryLimitError as MemoryLimitError
    from gemma3vl_app.errors import PictureError as PictureError
    from gemma3vl_app.errors import VerificationError as VerificationError
    from gemma3vl_app.evaluation.results import Evaluation as Evaluation
    from gemma3vl_app.evaluation.run import evaluate as evaluate
    from gemma3vl_app.faithfulness.bounds import Bounds as Bounds
    from gemma3vl_app.faithfulness.path_results import PathsVerification as PathsVerification
    from gemma3vl_app.faithfulness.paths import verify_paths as verify_paths
    from gemma3vl_app.faithfulness.results import Verification as Verification
    from gemma3vl_app.faithfulness.two_models import verify as verify
    from gemma3vl_app.folders.batch import batch as batch
    from gemma3vl_app.folders.items import BatchItem as BatchItem
    from gemma3vl_app.folders.items import BatchReport as BatchReport
    from gemma3vl_app.generation import Answer as Answer
    from gemma3vl_app.generation import Chunk as Chunk
    from gemma3vl_app.generation import Greedy as Greedy
    from gemma3vl_app.generation import Preview as Preview
    from gemma3vl_app.generation import Progress as Progress
    from gemma3vl_app.generation import Sample as Sample
    from gemma3vl_app.generation import Status as Status
    from gemma3vl_app.generation import Timing as Timing
    from gemma3vl_app.generation import Token as Token
    from gemma3vl_app.generation import Usage as Usage
    from gemma3vl_app.launching import launch as launch
    from gemma3vl_app.manager import ModelManager as ModelManager
    from gemma3vl_app.messages import Conversation as Conversation
    from gemma3vl_app.messages import Message as Message
    from gemma3vl_app.messages import Text as Text
    from gemma3vl_app.pictures import Picture as Picture
    from gemma3vl_app.planning import LoadPlan as LoadPlan
    from gemma3vl_app.planning.sources import plan as plan
    from gemma3vl_app.stream import Stream as Stream
    from gemma3vl_app.tasks import Caption as Caption
    from gemma3vl_app.tasks import Comparison as Comparison
    from gemma3vl_app.tasks import Extraction as Extraction
    from gemma3vl_app.tasks import PageReading as PageReading
    from gemma3vl_app.tasks import Reading as Reading
    from gemma3vl_app.tasks import Reply as Reply
    from gemma3vl_app.tasks import answer as answer
    from gemma3vl_app.tasks import caption as caption
    from gemma3vl_app.tasks import compare as compare
    from gemma3vl_app.tasks import extract as extract
    from gemma3vl_app.tasks import read_text as read_text

_CONTENTS = {
    # Models: plan how one would be placed, load it, and see how it was placed
    "plan": "planning.sources",
    "load": "backends.load",
    "Backend": "backends.protocol",
    "Capabilities": "backends.protocol",
    "LoadPlan": "planning",
    "ModelManager": "manager",
    "Progress": "generation",
    # Conversations: talk to a model, and the values a conversation is made of
    "Chat": "chat",
    "launch": "launching",
    "Conversation": "messages",
    "Message": "messages",
    "Text": "messages",
    "Picture": "pictures",
    # Tasks: a prompt of their own, a typed result
    "caption": "tasks",
    "answer": "tasks",
    "read_text": "tasks",
    "compare": "tasks",
    "extract": "tasks",
    "Caption": "tasks",
    "Reply": "tasks",
    "Reading": "tasks",
    "PageReading": "tasks",
    "Comparison": "tasks",
    "Extraction": "tasks",
    # Folders: one question about every picture
    "batch": "folders.batch",
    "BatchReport": "folders.items",
    "BatchItem": "folders.items",
    # Checkpoints: the same model in another form
    "convert": "conversion.converting",
    "Bridge": "conversion.converting",
    # Evaluation: how much of a suite a model gets right
    "evaluate": "evaluation.run",
    "Evaluation": "evaluation.results",
    # Faithfulness: is it still the same model
    "verify": "faithfulness.two_models",
    "verify_paths": "faithfulness.paths",
    "Bounds": "faithfulness.bounds",
    "Verification": "faithfulness.results",
    "PathsVerification": "faithfulness.path_results",
    # Answers: how to sample, what streams out, what it cost
    "Greedy": "generation",
    "Sample": "generation",
    "Stream": "stream",
    "Chunk": "generation",
    "Status": "generation",
    "Answer": "generation",
    "Token": "generation",
    "Usage": "generation",
    "Timing": "generation",
    "Preview": "generation",
    # Errors: each is fit to show to a person
    "Gemma3VLError": "errors",
    "PictureError": "errors",
    "ConversationError": "errors",
    "ContextLengthError": "errors",
    "LoadError": "errors",
    "BusyError": "errors",
    "MemoryLimitError": "errors",
    "EngineError": "errors",
    "ConversionError": "errors",
    "EvaluationError": "errors",
    "VerificationError": "errors",
}


_MODULES = ("explain", "notebook")  # used whole: `gv.notebook.chat`

# Values that notebooks show as more than their text. They know nothing of notebooks: IPython is
# told who draws them, where this runs in IPython.
_SHOWN = (
    ("pictures", "Picture"),
    ("messages", "Message"),
    ("messages", "Conversation"),
    ("chat", "Chat"),
    ("generation", "Answer"),
    ("planning.load_plan", "LoadPlan"),
    ("explain.heat", "Heat"),
    ("explain.certainty", "Certainty"),
    ("explain.lens", "Layers"),
    ("explain.difference", "Difference"),
    ("tasks.results", "TaskResult"),  # captions, replies, comparisons, extractions
    ("tasks.results", "Reading"),
    ("tasks.results", "PageReading"),
    ("folders.items", "BatchReport"),
)


def _tell_ipython() -> None:
    """Register what draws our values by name; nothing is imported before one is shown."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is None:
        return
    formatters = shell.display_formatter
    for home, name in _SHOWN:
        formatters.mimebundle_formatter.for_type_by_name(f"{__name__}.{home}", name, _bundle)
    formatters.ipython_display_formatter.for_type_by_name(f"{__name__}.stream", "Stream", _show)


def _bundle(value: object, **_: object) -> object:
    return import_module(f"{__name__}.notebook.displays").shown(value).bundle()


def _show(stream: object) -> None:
    import_module(f"{__name__}.notebook.live").show(stream)


_tell_ipython()


def __getattr__(name: str) -> object:
    """Fetch a name of the table of contents from its module."""
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _CONTENTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_CONTENTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*_CONTENTS, *_MODULES, "__version__"])
