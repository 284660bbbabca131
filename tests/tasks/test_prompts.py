"""The table of prompts is whole, and the docs show it as it is."""

from pathlib import Path
from typing import get_args

import pytest

from gemma3vl_app.tasks import prompts

TABLE = [*prompts.CAPTION.values(), *prompts.READ.values(), prompts.COMPARE, prompts.EXTRACT]
PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")


def test_every_kind_of_caption_and_page_has_a_prompt():
    assert set(prompts.CAPTION) == set(get_args(prompts.Detail))
    assert set(prompts.READ) == set(get_args(prompts.Layout))


@pytest.mark.parametrize("prompt", TABLE, ids=lambda prompt: prompt.text[:30])
def test_the_docs_show_each_wording_and_its_reason(prompt):
    for text in (prompt.text, prompt.reason):
        assert " ".join(text.split()) in " ".join(PAGE.split())
