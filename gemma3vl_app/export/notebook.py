"""A chat as a notebook that asks it again, with the recorded answers as its saved output.

Whatever comes from people, models and files stands in the code as `repr` of a value: it cannot
become code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from gemma3vl_app import catalog
from gemma3vl_app.export.branches import paths, systems
from gemma3vl_app.export.markdown_text import escape_line
from gemma3vl_app.export.pictures import PictureFiles
from gemma3vl_app.export.wording import model_name, printable, title
from gemma3vl_app.export.write import Document
from gemma3vl_app.generation import Greedy, Sampling
from gemma3vl_app.messages import Message, Part, Text
from gemma3vl_app.pictures import Picture
from gemma3vl_app.transcript import Generated, ModelIdentity, Transcript, Turn

Cell = dict[str, Any]


def notebook(transcript: Transcript, folder: str, branches: bool) -> Document:
    """Return the notebook (format 4.5); its pictures lie in `folder`, pixel by pixel."""
    pictures = PictureFiles(transcript, folder, exact=True)
    ways = paths(transcript, branches)
    first = [transcript.turns[index] for index in ways[0]]
    cells = [
        _markdown(
            f"# {escape_line(title(first))}\n\nThese cells ask a recorded conversation again."
        ),
        _load(transcript),
    ]
    for number, path in enumerate(ways, start=1):
        if len(ways) > 1:
            cells.append(_markdown(f"## Branch {number} of {len(ways)}"))
        cells += _conversation(transcript, path, pictures)
    for number, cell in enumerate(cells, start=1):
        cell["id"] = f"cell-{number}"
    data = {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return Document(json.dumps(data, indent=1, ensure_ascii=False) + "\n", pictures.files)


# --- cells ----------------------------------------------------------------------------------------


def _markdown(text: str) -> Cell:
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def _code(source: str, said: str | None = None) -> Cell:
    """Return a cell of code, with what it printed when the chat was held."""
    outputs = []
    if said is not None:
        text = printable(said) + "\n"
        outputs.append({"output_type": "stream", "name": "stdout", "text": text})
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {},
        "outputs": outputs,
        "source": source,
    }


def _load(transcript: Transcript) -> Cell:
    """Return the cell that loads the model which gave the first answer."""
    answers = [each for turn in transcript.turns for each in turn.generated]
    lines = ["import gemma3vl_app as gv", ""]
    if not answers:
        lines.append("# No model is recorded; choose one.")
    else:
        model = answers[0].model
        computed = ", ".join(filter(None, (model.weights, model.arithmetic)))
        lines += [f"# The first answer was computed with {computed!r}."] if computed else []
        if not _is_published(model):
            lines.append("# It was a local model: put its folder or file here.")
    adapters = dict.fromkeys(each.adapter for each in answers if each.adapter is not None)
    lines.append(_load_call(answers[0]) if answers else "backend = gv.load('demo')")
    lines += [
        f"# Some answers need an adapter: backend.add_adapter({name!r}, FOLDER)"
        for name in adapters
    ]
    return _code("\n".join(lines))


def _load_call(answer: Generated) -> str:
    commit = re.fullmatch("[0-9a-f]{40}", answer.model.revision)
    revision = f", revision={commit[0]!r}" if commit and _is_published(answer.model) else ""
    return f"backend = gv.load({model_name(answer)!r}{revision})"


def _is_published(model: ModelIdentity) -> bool:
    """Whether anybody can load the model by its name: it is no folder or file of one machine."""
    if model.name in (catalog.DEMO.name, catalog.BASE_270M.name):
        return True
    known = model.name in catalog.MODELS or catalog.HUB_ID.fullmatch(model.name) is not None
    return known and not model.revision.startswith("files:")


def _conversation(
    transcript: Transcript, path: Sequence[int], pictures: PictureFiles
) -> Iterator[Cell]:
    """Yield the cells that ask what the turns of `path` ask, in a chat of their own."""
    held = systems(transcript, path)
    system = held[0]
    yield _code(f"chat = gv.Chat(backend{'' if system is None else f', system={system!r}'})")
    turns = [transcript.turns[index] for index in path]
    for at, turn in enumerate(turns):
        if held[at] != system:
            system = held[at]
            yield _code(f"chat.system = {system!r}")
        following = turns[at + 1] if at + 1 < len(turns) else None
        if turn.message.role == "user":
            if turn.message.pictures:
                yield _markdown("\n".join(_shown(p, pictures) for p in turn.message.pictures))
            if following is None or _was_asked(following):
                yield _ask(turn.message, following.generated if following else (), pictures)
            else:
                yield _given(f"user({_parts(turn.message, pictures)})")
        elif at and turns[at - 1].message.role == "user" and _was_asked(turn):
            yield from map(_resume, turn.generated[1:])
        else:
            given = _given_text(turn)
            yield _given(f"assistant({given or turn.message.text!r})")
            yield from map(_resume, turn.generated if given else ())


def _was_asked(answer: Turn) -> bool:
    """Whether all of an answer was generated, nothing of it given by a program."""
    return answer.message.role == "assistant" and not _given_text(answer)


def _given_text(answer: Turn) -> str:
    """Return what stood there before the model went on with it."""
    said = "".join(each.text for each in answer.generated)
    if not answer.message.text.endswith(said):
        return ""  # not to be told apart, so the model is asked for all of it
    return answer.message.text.removesuffix(said)


# --- code -----------------------------------------------------------------------------------------


def _ask(message: Message, generated: Sequence[Generated], pictures: PictureFiles) -> Cell:
    """Return the cell that asks; pictures that stand first are named as people would do it."""
    texts = [part for part in message.parts if isinstance(part, Text)]
    crops = {picture.crops for picture in message.pictures}
    arguments: list[str] = []
    if message.parts == (*message.pictures, *texts) and len(crops) == 1:
        arguments += [_part(text, pictures) for text in texts]
        arguments.append(f"images={[pictures.path(picture) for picture in message.pictures]!r}")
        arguments += [f"crops={each!r}" for each in crops if each != "auto"]
    else:
        arguments += [_part(part, pictures) for part in message.parts]
    if generated:
        arguments += _options(generated[0])
    call = _call("answer = chat.ask", arguments)
    return _code(f"{call}\nprint(answer.text)", generated[0].text if generated else None)


def _resume(generated: Generated) -> Cell:
    call = _call("answer = chat.resume", _options(generated))
    return _code(f"{call}.answer\nprint(answer.text)", generated.text)


def _given(call: str) -> Cell:
    """Return a cell that adds a message which no model wrote, or none answered."""
    return _code(f"chat = gv.Chat(backend, conversation=chat.conversation.{call})")


def _parts(message: Message, pictures: PictureFiles) -> str:
    return ", ".join(_part(part, pictures) for part in message.parts)


def _part(part: Part, pictures: PictureFiles) -> str:
    if isinstance(part, Text):
        return repr(part.text)
    return f"gv.Picture.open({pictures.path(part)!r}, crops={part.crops!r})"


def _shown(picture: Picture, pictures: PictureFiles) -> str:
    return f"![{escape_line(picture.name)}]({pictures.link(picture)})"


def _options(generated: Generated) -> list[str]:
    options = [
        f"sampling={_sampling(generated.sampling)}",
        f"max_new_tokens={int(generated.max_new_tokens)}",
    ]
    if generated.stop:
        options.append(f"stop={[str(text) for text in generated.stop]!r}")
    if generated.schema is not None:  # as JSON, so that its repr is that of plain values
        options.append(f"schema={json.loads(json.dumps(generated.schema, default=dict))!r}")
    if generated.adapter is not None:
        options.append(f"adapter={str(generated.adapter)!r}")
    return options


def _sampling(sampling: Sampling) -> str:
    if isinstance(sampling, Greedy):
        return "gv.Greedy()"
    seed = None if sampling.seed is None else int(sampling.seed)
    return (
        f"gv.Sample(temperature={float(sampling.temperature)!r}, top_k={int(sampling.top_k)}, "
        f"top_p={float(sampling.top_p)!r}, seed={seed})"
    )


def _call(name: str, arguments: Sequence[str]) -> str:
    """Return a call with an argument a line."""
    return f"{name}(\n" + "".join(f"    {each},\n" for each in arguments) + ")"
