"""Markdown that stays readable and cannot do harm, whatever a model or a person wrote."""

import re

from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from gemma3vl_app.export import export
from gemma3vl_app.export.markdown_text import escape_line, harmless
from tests.export.chats import ATTACKS, EVERYDAY, hostile

RENDERERS = [
    MarkdownIt("commonmark", {"html": True}),
    MarkdownIt("gfm-like", {"html": True, "linkify": False}),
]
PIECES = [
    *("`", "``", "```", "~~~", "<b>", "<!--", "<script>", "<?", "<![CDATA[", "![", "[", "](", "]:"),
    *(
        "x",
        " ",
        "  ",
        "    ",
        "\t",
        "\n",
        "\n\n",
        "- ",
        "1. ",
        "> ",
        "|",
        "a|b\n-|-\n",
        "---",
        "===",
    ),
    *("# ", "\\", "&lt;", ")", "(", "<", "!", "'", "\r", "\x0b", "\u2028", "\xa0", "*"),
    *("javascript:x", "http://e.test/a.png", "java\nscript:"),
]
texts = st.lists(st.sampled_from(PIECES), max_size=25).map("".join)


def tokens(renderer: MarkdownIt, text: str) -> list[Token]:
    def flat(found: list[Token]) -> list[Token]:
        return [each for token in found for each in (token, *flat(token.children or []))]

    return flat(renderer.parse(text))


def types(text: str) -> list[str]:
    return [token.type for token in tokens(RENDERERS[1], text)]


@settings(max_examples=400, deadline=None)
@given(texts)
@example("- ```\n<script>")
@example("> ```\n<script>")
@example("` \n`<b>`")
@example("`a | b <img>`\n-|-")
@example("[a]: javascript:x\n\n[a]")
def test_no_text_becomes_html_a_picture_a_foreign_link_or_a_turn(text):
    document = f"## User\n\n{harmless(text)}\n\n## End\n\n<i>last</i>"
    for renderer in RENDERERS:
        found = tokens(renderer, document)
        assert [t.content for t in found if t.type.startswith("html_")] == ["<i>", "</i>"]
        assert not [t for t in found if t.type == "image"]
        links = [t.attrs["href"] for t in found if t.type == "link_open"]
        assert all(re.match("https?://", link) for link in links)
        headings = [t.tag for t in found if t.type == "heading_open" and t.level == 0]
        assert headings.count("h2") == 2 and "h1" not in headings


@given(st.text(st.characters(), max_size=40))
def test_a_line_holds_no_markup(line):
    document = f"# {escape_line(line)}\n\n*{escape_line(line)}*"
    allowed = ["heading_open", "inline", "text", "heading_close", "paragraph_open", "em_open"]
    allowed += ["em_close", "paragraph_close", "text_special"]
    assert set(types(document)) <= set(allowed)


def test_code_stays_code_and_ends_with_its_text():
    closed = "Look:\n```python\nif a < b: print('![x](y)')\n```\nDone."
    assert "```python\nif a < b: print('![x](y)')\n```" in harmless(closed)
    assert types(harmless("```\nopen")) == ["fence"]
    (fence, *_) = tokens(RENDERERS[0], harmless("````\n```\n<b>\n```\n````"))
    assert fence.content == "```\n<b>\n```\n"
    (fence, *_) = tokens(RENDERERS[0], harmless("~~~ js title=x\n```\n~~~"))
    assert (fence.info, fence.content) == ("js", "```\n")


def test_code_in_a_list_is_code():
    found = tokens(RENDERERS[0], harmless("1. Do\n   ```sh\n   ls <x>\n     -l\n   ```\n2. Done"))
    assert [t.content for t in found if t.type == "fence"] == ["ls <x>\n  -l\n"]
    assert [t.attrs.get("start") for t in found if t.type == "ordered_list_open"] == [None, 2]
    found = tokens(RENDERERS[0], harmless("- ```\n  a\n  ```\nafter"))
    assert [t.content for t in found if t.type == "fence"] == ["a\n"]


def test_code_in_a_line_keeps_its_signs():
    assert harmless("Use `<br>` or ``a`<b>``.") == "Use `<br>` or ``a`<b>``."
    assert harmless("No <br> here.") == "No &lt;br> here."


def test_everyday_formatting_stays():
    table = "| a | b |\n|---|---|\n| 1 | 2 |"
    text = "**Bold**, *soft*, [link](https://e.test/x)\n\n- one\n- two\n\n"
    found = types(harmless(text + table))
    for kind in ("strong_open", "em_open", "link_open", "bullet_list_open", "table_open"):
        assert kind in found


def test_lines_stay_lines_and_headings_stand_below_the_turns():
    assert types(harmless("one\ntwo")).count("hardbreak") == 1
    assert harmless("# Title\n\n###### deep") == "### Title\n\n###### deep"
    assert "heading_open" not in types(harmless("Title\n===\n\nOther\n-"))
    assert "hr" in types(harmless("above\n---\nbelow"))


def test_the_page_has_a_heading_per_turn_and_its_pictures_beside(tmp_path):
    done = export(EVERYDAY, tmp_path / "my chat.md")
    text = done.file.read_text(encoding="utf-8")
    assert re.findall("^#+ .*", text, re.M) == [
        "# Which one is red? Say why.",
        "## System",
        "## User",
        "## demo",
        "## User",
        "## demo",
    ]
    links = [t.attrs["src"] for t in tokens(RENDERERS[0], text) if t.type == "image"]
    assert links == ["my%20chat-pictures/01-red.png", "my%20chat-pictures/02-blue.png"]
    assert all((tmp_path / link.replace("%20", " ")).exists() for link in links)
    assert text.count("*1 other version, not shown*") == 2
    assert "*6 tokens, greedy, cut at its limit*" in text


def test_branches_follow_at_the_end(tmp_path):
    text = export(EVERYDAY, tmp_path / "a.md", branches=True).file.read_text(encoding="utf-8")
    end = text[text.index("## Versions not chosen") :]
    assert re.findall("^#+ .*", end, re.M) == [
        "## Versions not chosen",
        "### From message 2 on",
        "#### System",
        "#### demo",
        "### From message 3 on",
        "#### System",
        "#### User",
        "#### demo",
    ]
    assert "Is this red?" in end


def test_an_attack_in_one_turn_does_not_reach_the_next(tmp_path):
    text = export(hostile(), tmp_path / "a.md").file.read_text(encoding="utf-8")
    for renderer in RENDERERS:
        found = tokens(renderer, text)
        assert not [t for t in found if t.type.startswith("html_")]
        sources = [t.attrs["src"] for t in found if t.type == "image"]
        assert len(sources) == len(ATTACKS)
        assert all(source.startswith("a-pictures/") for source in sources)
        headings = [t.tag for t in found if t.type == "heading_open"]
        assert headings.count("h1") == 1
        assert headings.count("h2") == 2 * len(ATTACKS) + len(ATTACKS)  # a system text for each
