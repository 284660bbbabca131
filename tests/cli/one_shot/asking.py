"""What tests of the one-shot commands share: a scripted model, a picture, and what was asked."""

import io

from PIL import Image

from gemma3vl_app.errors import EngineError
from tests.tasks.backends import PageBackend


class Echo(PageBackend):
    """Says `texts[name of the last picture]`, or that name, or what it was asked; or fails."""

    failing: frozenset[str] = frozenset()  # names of pictures that are refused

    def stream(self, conversation, **options):
        if any(picture.name in self.failing for picture in conversation.pictures):
            raise EngineError("It broke.")
        return super().stream(conversation, **options)

    def _pieces(self, request):
        if self._chunks is not None or not request.conversation.pictures:
            return super(PageBackend, self)._pieces(request)
        return super()._pieces(request)


def png(colour="blue"):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), colour).save(buffer, "PNG")
    return buffer.getvalue()


def asked(backend):
    """The names of pictures and the text of the only request."""
    (request,) = backend.requests
    (message,) = request.conversation.messages
    return [picture.name for picture in message.pictures], message.text
