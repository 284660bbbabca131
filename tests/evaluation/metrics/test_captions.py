"""CIDEr over pycocoevalcap, with words cut as its Java tokenizer cuts them."""

import shutil

import pytest
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from gemma3vl_app.evaluation.intervals import total
from gemma3vl_app.evaluation.items import Item
from gemma3vl_app.evaluation.metrics.captions import CIDER, tokens

# What the Java program makes of captions, the odd ones with it.
CAPTIONS = {
    "A man's dog doesn't like the black-and-white cat.": "a man 's dog does n't like the "
    "black-and-white cat",
    "Two people (a couple) are sitting; eating pizza/pasta!": "two people -lrb- a couple -rrb- are "
    "sitting eating pizza/pasta",
    "It's 5:30 o'clock, $5.99 and 50% off...": "it 's 5:30 o'clock $ 5.99 and 50 % off",
    "U.S. flag on Mr. Smith's house - near St. Mary": "u.s. flag on mr. smith 's house near st. "
    "mary",
    "a \"quoted\" sign that says 'STOP' & go": "a quoted sign that says stop & go",
    "t-shirt, well-known e-mail; can't won't they're he'll I'd we've cannot gonna": "t-shirt "
    "well-known e-mail ca n't wo n't they 're he 'll i 'd we 've can not gon na",
    "A close-up of a b&w photo #1 @ home": "a close-up of a b & w photo # 1 @ home",
    "a man -- or woman -- on a bike...?!": "a man or woman on a bike ?!",
    "1,000 sheep,red and blue": "1,000 sheep red and blue",
}
REFERENCES = [
    ["A red bus drives down the street.", "A bus on a city street.", "The bus's door is open."],
    ["Two dogs play in the snow.", "A couple of dogs running through snow."],
    ["A man isn't looking at the camera.", "A man (old) with a hat."],
    ["A plate of food on a table.", "Pizza on a plate, ready to eat!"],
]
SAID = ["A red bus on a street.", "Two dogs in snow", "A man with a hat", "A cat."]


@pytest.mark.parametrize("caption", CAPTIONS)
def test_a_caption_becomes_the_words_of_the_published_tokenizer(caption):
    assert " ".join(tokens(caption)) == CAPTIONS[caption]


@pytest.mark.skipif(shutil.which("java") is None, reason="the published tokenizer is Java")
def test_scores_are_those_of_the_published_tokenizer():
    def cut(texts):
        return PTBTokenizer().tokenize({k: [{"caption": t} for t in v] for k, v in texts.items()})

    wanted, said = dict(enumerate(REFERENCES)), {k: [text] for k, text in enumerate(SAID)}
    score, scores = Cider().compute_score(cut(wanted), cut(said))
    parts = CIDER.score_all([Item(str(k), "", tuple(r), ()) for k, r in wanted.items()], SAID)
    assert [part.value for part in parts] == pytest.approx(list(scores))
    assert total(parts) == pytest.approx(score)
    assert cut({k: [text] for k, text in enumerate(CAPTIONS)}) == {
        k: [told] for k, told in enumerate(CAPTIONS.values())
    }


def test_a_caption_that_failed_scores_nothing_and_the_others_as_before():
    items = [Item(str(k), "", tuple(r), ()) for k, r in enumerate(REFERENCES)]
    whole, without = CIDER.score_all(items, SAID), CIDER.score_all(items, [None, *SAID[1:]])
    assert whole[0].value > 0 == without[0].value
    assert whole[1:] == without[1:]
