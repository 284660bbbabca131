"""How much faster an answer is that says again what was said, since it is guessed ahead."""

from __future__ import annotations

import statistics
from contextlib import closing

import numpy as np

from gemma3vl_app.benchmark.result import Result
from gemma3vl_app.engine.engine import Engine
from gemma3vl_app.engine.sequence import Request
from gemma3vl_app.engine.speculation.lookup import Lookup
from gemma3vl_app.engine.speculation.speculation import Speculation
from gemma3vl_app.generation import Answer, Greedy, Sample, Sampling
from gemma3vl_app.loading.loader import load_model
from gemma3vl_app.prompting.format import PromptFormat
from gemma3vl_app.prompting.prompt import PreparedPrompt
from gemma3vl_app.prompting.tokenizer import TextTokenizer

PAGE = (
    "The river rose in the night. By the morning of the third of May it stood at 4.2 metres, and "
    "the mill at Alder Bridge was under water. Three families, the Harpers, the Odells and the "
    "Quists, were taken off by boat; their cattle had been moved to Long Meadow on Tuesday."
)
AGAIN = f"{PAGE}\n\n{PAGE}\n\nThe river rose"
FREE = "In the village by the river there was an old mill, and"
TOKENS = 64
REPEATS = 3


def repeating() -> list[Result]:
    """Let the demo's base model write a page out again, and go on freely, with guesses and without.

    The words are its own choice, so a part of the guesses is wrong, as in use.
    """
    with closing(_Writer(guessing=True)) as guessing, closing(_Writer(guessing=False)) as plain:
        again = _pairs(guessing, plain, AGAIN, Greedy())
        free = _pairs(guessing, plain, FREE, Sample(seed=1))
        arithmetic = plain.dtype
    return [
        _result(f"writing a page out again, 270M, {arithmetic}", again, target=1.5),
        _result(f"writing what repeats little, 270M, {arithmetic}", free, target=0.9),
    ]


def _pairs(
    guessing: _Writer, plain: _Writer, text: str, sampling: Sampling
) -> list[tuple[Answer, Answer]]:
    """Write several times with guesses and without; which is first changes, as machines drift."""
    pairs = []
    for run in range(REPEATS + 1):  # the first lets the costs of this machine be measured
        first, second = (guessing, plain) if run % 2 else (plain, guessing)
        answers = {writer: writer.write(text, sampling) for writer in (first, second)}
        pairs.append((answers[guessing], answers[plain]))
    return pairs[1:]


class _Writer:
    """The base model behind an engine that goes on with any text and is never stopped."""

    def __init__(self, *, guessing: bool) -> None:
        loaded = load_model("270m-pt")
        self.dtype = loaded.plan.dtype
        self._tokenizer = TextTokenizer.from_file(loaded.tokenizer_file)
        never = self._tokenizer.control_ids
        self._begin = self._tokenizer.id_of("<bos>")
        self._engine = Engine(
            loaded.model,
            self._tokenizer,
            PromptFormat.from_config(loaded.config, loaded.preprocessor, self._tokenizer),
            stop_ids=(),
            speculation=Speculation(Lookup(never)) if guessing else None,
        )

    def write(self, text: str, sampling: Sampling) -> Answer:
        """Return what follows `text`."""
        ids = np.array([self._begin, *self._tokenizer.encode(text)], dtype=np.int64)
        request = Request(prompt=PreparedPrompt(ids), sampling=sampling, max_new_tokens=TOKENS)
        return self._engine.submit(request).answer

    def close(self) -> None:
        """Let go of the model."""
        self._engine.close()


def _result(name: str, pairs: list[tuple[Answer, Answer]], *, target: float) -> Result:
    with_guesses, without = (list(each) for each in zip(*pairs, strict=True))
    used = [answer.usage for answer in with_guesses]
    return Result(
        name=name,
        value=statistics.median(answer.timing.tokens_per_sec for answer in with_guesses),
        baseline=statistics.median(answer.timing.tokens_per_sec for answer in without),
        unit="tokens/s",
        baseline_name="without guesses",
        bound="at least",
        target=target,
        details={
            "proposed_tokens": statistics.mean(each.proposed_tokens for each in used),
            "accepted_tokens": statistics.mean(each.accepted_tokens for each in used),
            "written_tokens": statistics.mean(each.completion_tokens for each in used),
            "same_answers": sum(one.text == other.text for one, other in pairs) / len(pairs),
        },
    )
