"""What tests of the chat share: a scripted model, and what to look at in a chat."""

from gemma3vl_app.testing.scripted import ScriptedBackend

SLOWLY = """
import sys, time, types
from gemma3vl_app.testing import ScriptedBackend
local = types.ModuleType("gemma3vl_app.backends.local")  # spares the import of the real one
sys.modules[local.__name__] = local
def load(*_, **__):
    print("loading", flush=True)
    end = time.monotonic() + {loading}
    while time.monotonic() < end:  # a signal just before one long sleep would wait for its end
        time.sleep(0.05)
    return ScriptedBackend(seconds_per_chunk=0.2)
local.load = load
from gemma3vl_app import cli
sys.argv = ["gemma3vl", "chat", *{options}]
cli.main()
"""


class Scripted(ScriptedBackend):
    """The scripted backend, with a script, an error or a refusal for one request at a time."""

    def __init__(self, **options):
        super().__init__(**options)
        self.refusal = None

    def stream(self, conversation, **options):
        if self.refusal is not None:
            refusal, self.refusal = self.refusal, None
            raise refusal
        return super().stream(conversation, **options)

    def says(self, *chunks, error=None):
        self._chunks, self._error = chunks or None, error


def texts(talk):
    return [message.text for message in talk.chat.conversation.messages]


def names(message):
    return [picture.name for picture in message.pictures]
