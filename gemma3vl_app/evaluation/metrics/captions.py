"""CIDEr: how much a caption is like what people wrote (Vedantam et al. 2015).

The arithmetic is that of the package pycocoevalcap, which the published numbers come from. Its
tokenizer is a Java program; ours follows that on captions, and needs no Java. What differs is said
in docs/evaluation.md, and a test compares both where there is Java.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module

from gemma3vl_app.errors import EvaluationError
from gemma3vl_app.evaluation.items import Item
from gemma3vl_app.evaluation.metrics.metric import Metric, Part

_TOKEN = re.compile(
    r"""
    n't\b | '(?:s|re|ve|ll|d|m)\b        # what was cut off: is n't, it 's
    | (?:[a-z]\.){2,}                    # u.s.
    | (?:mr|mrs|ms|dr|st|jr|sr|vs)\.     # which keep their full stop
    | </?\w+>                            # <b>
    | \d+(?:[.,:]\d+)+                   # 5:30, 1,000
    | \w+(?:['./-]\w+)*                  # o'clock, t-shirt, and/or
    | [?!]{2,}
    | [^\w\s]
    """,
    re.VERBOSE,
)
_CUT_OFF = re.compile(r"(?<=\w)(n't|'(?:s|re|ve|ll|d|m))\b")
_TWO_WORDS = re.compile(r"\b(can)(not)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b")
_BRACKETS = {
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-"},
    **{"]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
}
_DROPPED = set("'`.?!,:-;\"\u2018\u2019\u201c\u201d\u2013\u2014\u2026")


def tokens(caption: str) -> list[str]:
    """Return a caption's words in lower case, without punctuation, as the Penn Treebank has it."""
    text = caption.lower().replace("\u2019", "'")
    text = _CUT_OFF.sub(r" \1", text)
    text = _TWO_WORDS.sub(lambda found: " ".join(filter(None, found.groups())), text)
    return [_BRACKETS.get(each, each) for each in _TOKEN.findall(text) if each not in _DROPPED]


def cider_parts(items: Sequence[Item], answers: Sequence[str]) -> list[Part]:
    """Return each caption's CIDEr; how rare words are is counted in all references together."""
    try:
        cider = import_module("pycocoevalcap.cider.cider").Cider
    except ImportError as error:
        raise EvaluationError(
            "CIDEr is computed by the package pycocoevalcap. Install it: "
            "pip install 'gemma3vl-app[evaluate]'"
        ) from error
    keys = range(len(items))
    wanted = {key: [" ".join(tokens(each)) for each in items[key].answers] for key in keys}
    said = {key: [" ".join(tokens(answers[key]))] for key in keys}
    _, scores = cider().compute_score(wanted, said)
    return [Part(float(score)) for score in scores]


CIDER = Metric(
    name="cider",
    about="likeness to people's captions, by n-grams weighted by how rare they are; 0 to 10",
    parts=cider_parts,
    percent=False,
)
