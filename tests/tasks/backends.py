"""Scripted backends that answer by what they are shown."""

from gemma3vl_app.testing.scripted import ScriptedBackend


class PageBackend(ScriptedBackend):
    """Answers each picture with what `texts` has for its name, or with the name itself."""

    def __init__(self, texts=None, **options):
        super().__init__(**options)
        self.texts = texts or {}

    def _pieces(self, request):
        name = request.conversation.pictures[-1].name
        return [*self.texts.get(name, name)]
