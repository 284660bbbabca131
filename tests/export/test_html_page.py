"""The page that people share: complete, readable for machines too, and nothing but text."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from gemma3vl_app.export import export
from gemma3vl_app.pictures import Picture
from gemma3vl_app.transcript import ROOT, Transcript, Turn
from tests.export.chats import (
    ATTACKS,
    BLUE,
    EVERYDAY,
    RED,
    answer,
    assistant,
    hostile,
    photo,
    png,
    user,
)

VOID = {"meta", "img"}
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Page(HTMLParser):
    """An exported page as a tree flattened to tags, texts by article and data addresses."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []  # everything is closed

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def page(tmp_path):
    """Export a transcript and parse it."""

    def page(transcript: Transcript, *, branches: bool = False) -> Page:
        done = export(transcript, tmp_path / "a.html", branches=branches, overwrite=True)
        return Page(done.file.read_text(encoding="utf-8"))

    return page


def test_the_conversation_shown_stands_there_in_order(page):
    text = "\n".join(page(EVERYDAY).texts)
    said = ["Be kind.", "Which one is red?\nSay why.", "A red one.", "Why?", "It is."]
    places = [text.index(f"\n{each}\n") for each in said]
    assert places == sorted(places)
    assert "Is this red?" not in text and "\nRed.\n" not in text
    assert text.count("1 other version, not shown") == 2
    assert "demo · 2 questions · 2 pictures" in text


def test_branches_are_there_when_asked_for(page):
    shown = page(EVERYDAY, branches=True)
    text = "\n".join(shown.texts)
    assert {"Red.", "Is this red?", "Yes.", "Answer briefly."} <= set(shown.texts)
    assert text.count("1 other version") == 2 and "not shown" not in text
    assert [each.get("class") for each in shown.all("details")].count("versions") == 2
    assert "Not chosen, from message 3 on" in text


def test_settings_are_folded_away_below_each_answer(page):
    shown = page(EVERYDAY)
    text = "|".join(shown.texts)
    for row in (
        "Sampling|temperature 1, top-k 64, top-p 0.95, seed 7",
        "Limit|2 tokens",
        "Adapter|poet",
        'Stops at|"\\n"',
        "Weights|fp32",
        "Ended|cut at its limit",
        "Prompt|300 tokens, 64 of them pictures, 200 cached",
        "Time|first token after 0.81 s, 12.3 tokens/s",
    ):
        assert row in text
    assert len(shown.all("details")) == 2
    assert len(shown.all("dl")) == 3  # two calls wrote the first answer
    assert "6 tokens, greedy, cut at its limit" in text
    assert all("open" not in each for each in shown.all("details"))


def test_pictures_are_inside_without_metadata_and_have_alternative_texts(page):
    chat = Transcript((Turn(user(photo(), RED, "?"), ROOT),), head=0)
    images = page(chat).all("img")
    assert [image["alt"] for image in images] == ["beach.jpg", "red.png"]
    kinds = []
    for image in images:
        kind, data = re.fullmatch(r"data:image/(\w+);base64,(.*)", image["src"]).groups()
        kinds.append(kind)
        file = base64.b64decode(data)
        assert b"Secret" not in file
        assert Image.open(io.BytesIO(file)).size == (int(image["width"]), int(image["height"]))
    assert kinds == ["jpeg", "png"]


def test_a_picture_is_embedded_once_and_referred_to_after_that(page):
    shown = page(EVERYDAY, branches=True)
    assert len(shown.all("img")) == 2
    (link,) = shown.all("a")
    assert link["href"].removeprefix("#") in {each.get("id") for each in shown.all("figure")}


def test_parts_keep_their_order(page):
    shown = page(Transcript((Turn(user("One ", "two", RED, "three", BLUE), ROOT),), head=0))
    order = [t for t, a in shown.tags if t == "img" or a.get("class") == "text"]
    assert order == ["div", "img", "div", "img"]
    assert "One two" in shown.texts


def test_the_title_is_the_first_words_of_the_first_question(page):
    def heading(*turns: Turn) -> str:
        shown = page(Transcript(turns, head=len(turns) - 1))
        return next(text for text in shown.texts if text.strip())

    assert heading(Turn(user("What\n is  it?"), ROOT)) == "What is it?"
    assert heading(Turn(user("word " * 100), ROOT)) == " ".join(["word"] * 12) + " …"
    assert heading(Turn(user("x" * 100), ROOT)) == "x" * 60 + " …"
    assert heading(Turn(user(RED), ROOT)) == "red.png"
    assert heading(Turn(user(""), ROOT)) == "A conversation"
    assert heading(Turn(user("\u202eab\x1bc"), ROOT)) == "ab\ufffdc"


def test_the_page_says_its_language_and_who_speaks(page):
    shown = page(EVERYDAY)
    assert shown.all("html") == [{"lang": "en"}]
    ids = [each["id"] for each in shown.all("h2") if "id" in each]
    assert [each["aria-labelledby"] for each in shown.all("article")] == ids
    assert len(set(ids)) == 4
    assert len(shown.all("h1")) == len(shown.all("main")) == 1
    texts = [each for each in shown.all("div") if each.get("class") == "text"]
    assert all((each["dir"], each["lang"]) == ("auto", "") for each in texts)


def test_a_given_answer_is_no_models(page):
    shown = page(Transcript((Turn(user("?"), ROOT), Turn(assistant("!"), 0)), head=1))
    assert "Assistant" in shown.texts
    assert not shown.all("details")


def test_a_system_text_stands_where_it_changes(page):
    turns = (Turn(user("First?"), ROOT), answer("b", 0, system="One."))
    turns += (Turn(user("Second?"), 1), answer("d", 2, system=None))
    text = "\n".join(page(Transcript(turns, head=3)).texts)
    none = "No system text from here on."
    places = [text.rindex(each) for each in ("One.", "First?", none, "Second?")]
    assert places == sorted(places)


def test_folders_of_the_machine_do_not_leave_with_the_models_name(page):
    for name in ("/home/ann/secret/gemma", r"C:\Users\ann\secret\gemma"):
        model = answer("b", 0).generated[0].model
        changed = type(model)(name=name)
        shown = page(Transcript((Turn(user("a"), ROOT), answer("b", 0, model=changed)), head=1))
        assert "gemma" in shown.texts
        assert "secret" not in "".join(shown.texts)


@pytest.mark.parametrize("branches", [False, True])
def test_nothing_in_a_hostile_chat_becomes_markup(page, branches):
    shown = page(hostile(), branches=branches)
    known = {*VOID, *("html", "head", "title", "style", "body", "header", "main", "footer")}
    known |= {"h1", "h2", "h3", "article", "section", "p", "div", "bdi", "figure", "figcaption"}
    known |= {"details", "summary", "dl", "dt", "dd"}
    assert {tag for tag, _ in shown.tags} <= known
    attributes = {(tag, name) for tag, each in shown.tags for name in each}
    assert not [name for _, name in attributes if name.startswith("on") or name == "style"]
    assert all(each["src"].startswith("data:image/") for each in shown.all("img"))
    assert len(shown.all("style")) == len(shown.all("title")) == 1
    assert shown.all("meta")[1]["content"].startswith(POLICY)
    assert ATTACKS[0] in shown.texts  # as text


def test_names_are_escaped_in_attributes(page):
    small = png("red")
    picture = Picture(small.data, small.sha256, '" onload="alert(1)', width=40, height=30)
    (image,) = page(Transcript((Turn(user(picture), ROOT),), head=0)).all("img")
    assert set(image) == {"alt", "width", "height", "src"}
    assert image["alt"] == '" onload="alert(1)'
