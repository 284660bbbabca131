"""Text is read page by page, part by part, in order: no line is lost or told twice."""

import pytest
from PIL import Image

import gemma3vl_app as gv
from gemma3vl_app.errors import ConversationError, EngineError, PictureError
from gemma3vl_app.pictures import Picture
from gemma3vl_app.tasks import Reader, prompts
from gemma3vl_app.testing.scripted import ScriptedBackend
from tests.tasks.backends import PageBackend
from tests.tasks.test_long_pages import drawn_page

PAGE = Image.new("RGB", (60, 80), "white")


def named(*names):
    return [Picture.open(PAGE, name=name) for name in names]


def test_a_page_is_its_lines():
    backend = PageBackend({"a.png": "First line\n\n  Second line \nThird\n"})
    reading = gv.read_text(backend, *named("a.png"))
    assert str(reading) == reading.text == "First line\n\n  Second line \nThird"
    assert reading.lines == ("First line", "  Second line ", "Third")
    assert reading.complete
    assert [page.name for page in reading.pages] == ["a.png"]
    assert reading.answers[0].text.endswith("Third\n")


def test_layouts_have_their_own_prompt_and_a_fence_goes():
    backend = ScriptedBackend(["```markdown\n", "# Title\n", "```"])
    assert gv.read_text(backend, PAGE, layout="markdown").text == "# Title"
    gv.read_text(backend, PAGE)
    said = [request.conversation.messages[0].text for request in backend.requests]
    assert said == [prompts.READ["markdown"].text, prompts.READ["plain"].text]
    assert backend.requests[0].max_new_tokens == 4 * backend.capabilities.answer_tokens
    with pytest.raises(ConversationError, match="'plain' or 'markdown'"):
        gv.read_text(backend, PAGE, layout="html")


def test_pages_of_a_pdf_and_pictures_come_in_order(tmp_path):
    PAGE.save(tmp_path / "two.pdf", "PDF", save_all=True, append_images=[PAGE])
    backend = PageBackend(seconds_per_chunk=0.001)
    reading = gv.read_text(backend, [tmp_path / "two.pdf", *named("b.png")])
    assert reading.text == "two.pdf, page 1\n\ntwo.pdf, page 2\n\nb.png"
    assert (
        gv.read_text(backend, (tmp_path / "two.pdf").read_bytes()).pages[1].text.endswith("page 2")
    )


def test_a_long_page_is_read_in_parts_that_make_one_page():
    page, _ = drawn_page()
    backend = PageBackend()
    reading = gv.read_text(backend, Picture.open(page, name="long.png"), crops="off")
    parts = len(backend.requests)
    assert parts >= 5
    assert reading.lines == tuple(f"long.png, part {n} of {parts}" for n in range(1, parts + 1))
    assert reading.text == "\n".join(reading.lines)
    assert [(each.name, len(each.answers)) for each in reading.pages] == [("long.png", parts)]
    assert {request.conversation.pictures[0].crops for request in backend.requests} == {"off"}


def test_many_pages_are_asked_side_by_side_but_never_all_at_once():
    most = 0

    class Watched(PageBackend):
        def stream(self, *arguments, **options):
            nonlocal most
            most = max(most, self.running + 1)
            return super().stream(*arguments, **options)

    names = [f"{number}.png" for number in range(20)]
    reading = gv.read_text(Watched(seconds_per_chunk=0.005), named(*names))
    assert reading.text.split("\n\n") == names
    assert 2 <= most <= 8


def test_a_cut_part_is_not_hidden():
    backend = PageBackend({"a.png": "ab", "b.png": "abcdef"})
    reading = gv.read_text(backend, named("a.png", "b.png"), max_new_tokens=3)
    assert not reading.complete
    assert [page.complete for page in reading.pages] == [True, False]
    assert reading.text == "ab\n\nabc"


class Failing(PageBackend):
    """Refuses the page called "bad.png", at once or in its middle."""

    def __init__(self, *, at_once):
        super().__init__()
        self.at_once = at_once

    def stream(self, conversation, **options):
        bad = conversation.pictures[0].name == "bad.png"
        if bad and self.at_once:
            raise EngineError("It broke.")
        self._error = EngineError("It broke.") if bad else None
        stream = super().stream(conversation, **options)
        while not stream.done:  # one after the other: the error is the backend's, not the page's
            pass
        return stream


@pytest.mark.parametrize("at_once", [True, False])
def test_a_failed_page_is_named(at_once):
    with pytest.raises(EngineError, match=r"^bad\.png: It broke\.$"):
        gv.read_text(Failing(at_once=at_once), named("a.png", "bad.png", "c.png"))


def test_bad_input_is_told(tmp_path):
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.4 nothing")
    with pytest.raises(PictureError, match=r"bad\.pdf"):
        gv.read_text(ScriptedBackend(), tmp_path / "bad.pdf")
    with pytest.raises(ConversationError, match="no page to read"):
        gv.read_text(ScriptedBackend(), [])


def test_a_reader_streams_exactly_what_the_reading_says():
    texts = {"a.png": "```text\nOne\n\nTwo\n```", "b.png": "`Three`  \n"}
    reader = Reader(PageBackend(texts), named("a.png", "b.png"))
    with pytest.raises(EngineError, match="Iterate"):
        _ = reader.reading
    assert "".join(chunk.text for chunk in reader) == reader.reading.text == "One\n\nTwo\n\n`Three`"


def test_a_reader_that_is_left_cancels_what_it_asked():
    backend = PageBackend({"a.png": "abc" * 500, "b.png": "abc" * 500}, seconds_per_chunk=0.01)
    chunks = iter(Reader(backend, named("a.png", "b.png")))
    while not next(chunks).text:
        pass
    chunks.close()
    backend.close(finish_sec=5)
    assert backend.running == 0
