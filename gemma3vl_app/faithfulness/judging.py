"""Results of what was found on a path: one a crop mode, against the bounds of its form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from gemma3vl_app.faithfulness.bounds import FORM_BOUNDS, Bounds, own_pass_bounds
from gemma3vl_app.faithfulness.engine_paths import Features, Found, PathRun
from gemma3vl_app.faithfulness.measuring import Place, Rows, agreement
from gemma3vl_app.faithfulness.path_results import PathResult
from gemma3vl_app.faithfulness.prompts import CROPS, Prompt
from gemma3vl_app.faithfulness.reader import Reading
from gemma3vl_app.faithfulness.results import Agreement, joined
from gemma3vl_app.faithfulness.two_models import features_error
from gemma3vl_app.prompting.tokenizer import TextTokenizer

Asked = tuple[Prompt, Reading]  # and what the reference made of it


class Judge:
    """Makes results of one form; `given` bounds replace those of the form and of its paths."""

    def __init__(
        self,
        weights: str,
        asked: Sequence[Asked],
        tokenizer: TextTokenizer,
        given: Bounds | None,
    ) -> None:
        self._weights = weights
        self._asked = [each for each in asked if each[1].answer_ids]
        self._tokenizer = tokenizer
        self._given = given if given is not None and given.are_given else None

    @property
    def readings(self) -> list[Reading]:
        """The readings of the reference that have an answer, in order: what paths are run on."""
        return [reading for _, reading in self._asked]

    def results(
        self, path: str, run: PathRun, about: str, *, dtype: str, kernels: bool
    ) -> Iterator[PathResult]:
        """Yield a result for each crop mode that the prompts have.

        `about` goes before the path's own note. `dtype` is that of the arithmetic, `kernels`
        whether our compiled ones had their part in it.
        """
        for crops in CROPS:
            numbers = [at for at, (prompt, _) in enumerate(self._asked) if prompt.crops == crops]
            if not numbers:
                continue
            found = {at: each for at in numbers if (each := run.found[at]) is not None}
            blank = PathResult(weights=self._weights, path=path, crops=crops, agreement=None)
            if not found:
                yield replace(blank, note=_joined_notes(about, f"did not come about: {run.note}"))
                continue
            left_out = len(numbers) - len(found)
            more = f"not at {left_out} of {len(numbers)} prompts" if left_out else ""
            note = _joined_notes(about, run.note, more)
            yield self._judged(replace(blank, note=note), found, run.features, dtype, kernels)

    def failed(self, path: str, failure: str, note: str = "") -> PathResult:
        """Return the result of a path that could not be compared, which is over any bound."""
        return PathResult(
            weights=self._weights,
            path=path,
            crops="",
            agreement=None,
            note=_joined_notes(note, failure),
            exceeded=(f"not compared: {failure.rstrip('.')}",),
        )

    def _judged(
        self,
        blank: PathResult,
        found: dict[int, Found],
        features: Features | None,
        dtype: str,
        kernels: bool,
    ) -> PathResult:
        """Fill in the figures of what was found at prompts, by their numbers."""
        total = self._joined(found, lambda each: each.rows)
        bounds = self._given or FORM_BOUNDS[self._weights]
        exceeded = bounds.exceeded(total)
        own, own_bounds = None, own_pass_bounds(self._weights, dtype, kernels=kernels)
        if all(each.own_rows is not None for each in found.values()):
            own = self._joined(found, lambda each: each.own_rows)
            if self._given is None:
                over = own_bounds.exceeded(own)
                exceeded += tuple(f"next to transformers in the same form, {line}" for line in over)
        return replace(
            blank,
            agreement=total,
            own_pass=own,
            features_error=self._features_error(found, features or {}),
            exceeded=exceeded,
            bounds=bounds.why,
            own_bounds=own_bounds.why if own is not None and self._given is None else "",
        )

    def _joined(self, found: dict[int, Found], rows: Callable[[Found], Rows | None]) -> Agreement:
        agreements = []
        for at, each in found.items():
            some = rows(each)
            assert some is not None
            prompt, reading = self._asked[at]
            start = len(reading.prompt)
            positions = list(range(start - 1, start - 1 + len(some.kl)))
            place = Place(prompt.name, positions, reading.ids, start)
            agreements.append(agreement(some, place, self._tokenizer))
        return joined(agreements)

    def _features_error(self, numbers: dict[int, Found], features: Features) -> float | None:
        """Return the error of the pictures' features that a path computed itself."""
        expected = {
            key: each
            for at in numbers
            for key, each in self._asked[at][1].features.items()
            if key in features
        }
        return features_error(
            [*expected.values()], [features[key].float().cpu() for key in expected]
        )


def _joined_notes(*notes: str) -> str:
    return "; ".join(each for each in notes if each)
