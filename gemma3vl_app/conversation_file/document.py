"""conversation.json: its versioned form, and how it becomes a `Transcript` and back.

Strict on purpose: an unknown field or version is an error, never something silently lost. Knows
nothing of zips.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field

from gemma3vl_app.generation import FinishReason, Greedy, Sample, Sampling, Timing, Usage
from gemma3vl_app.messages import Message, Part, Text
from gemma3vl_app.pictures import Crops, Picture
from gemma3vl_app.transcript import Generated, ModelIdentity, Transcript, Turn

FORMAT: Literal["gemma3vl-chat"] = "gemma3vl-chat"
VERSION: Literal[1] = 1

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Item = TypeVar("Item")
Many = Annotated[list[Item], FailFast()]  # one wrong item is enough to know
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Strict(BaseModel):
    """What all parts share: no unknown fields, no conversions, no changes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextPart(Strict):
    """A run of text in a message."""

    type: Literal["text"]
    text: str


class PicturePart(Strict):
    """A picture in a message: `file` is the SHA-256 of its bytes, by which it is stored."""

    type: Literal["picture"]
    file: Sha256
    name: str
    crops: Crops


class PictureFile(Strict):
    """A stored picture: the SHA-256 of its bytes and of its upright sRGB pixels; its size."""

    file: Sha256
    pixels_sha256: Sha256
    width: Annotated[int, Field(gt=0)]
    height: Annotated[int, Field(gt=0)]


class Model(Strict):
    """A model that answered; see `transcript.ModelIdentity`."""

    name: str
    revision: str
    tokenizer_sha256: str
    weights: str
    arithmetic: str


class GreedyRule(Strict):
    """The most likely token was taken each time."""

    kind: Literal["greedy"]


class SampleRule(Strict):
    """Tokens were drawn; with a seed, the same ones again."""

    kind: Literal["sample"]
    temperature: Annotated[float, Field(gt=0, le=100)]
    top_k: Count
    top_p: Annotated[float, Field(gt=0, le=1)]
    seed: Count | None


Rule = Annotated[GreedyRule | SampleRule, Field(discriminator="kind")]


class UsageCounts(Strict):
    """Tokens of one answer; see `generation.Usage`."""

    prompt_tokens: Count
    cached_tokens: Count
    image_tokens: Count
    completion_tokens: Count
    proposed_tokens: Count = 0  # absent in files of before there was guessing
    accepted_tokens: Count = 0


class TimingSeconds(Strict):
    """Seconds of one answer; see `generation.Timing`."""

    decode_image_sec: Seconds
    vision_sec: Seconds
    prefill_sec: Seconds
    decode_sec: Seconds
    ttft_sec: Seconds
    tokens_per_sec: Seconds


class GeneratedPiece(Strict):
    """One call that wrote an answer or went on with it; `model` is an index into `models`."""

    model: Count
    ids: Many[Count]
    said_tokens: Count
    text: str
    finish_reason: FinishReason
    system: str | None
    sampling: Rule
    max_new_tokens: Annotated[int, Field(gt=0, lt=1 << 63)]
    stop: Many[str]
    answer_schema: dict[str, Any] | None
    adapter: str | None
    usage: UsageCounts
    timing: TimingSeconds


class TurnEntry(Strict):
    """A message; `parent` is the index of the turn before it, -1 for a first one."""

    parent: Annotated[int, Field(ge=-1)]
    role: Literal["user", "assistant"]
    parts: Many[Annotated[TextPart | PicturePart, Field(discriminator="type")]]
    generated: Many[GeneratedPiece]


class Document(Strict):
    """The whole of conversation.json; `head` is the turn where the chat stands."""

    format: Literal["gemma3vl-chat"]
    version: Literal[1]
    saved: str
    software: dict[str, str]
    system: str | None
    sampling: Rule | None
    models: Many[Model]
    pictures: Many[PictureFile]
    turns: Many[TurnEntry]
    head: Annotated[int, Field(ge=-1)]


# --- to a document --------------------------------------------------------------------------------


def to_document(
    transcript: Transcript,
    files: Mapping[Picture, str],
    *,
    saved: str,
    software: Mapping[str, str],
    first: int = 0,
) -> Document:
    """Return the document of a transcript; `files` are the SHA-256 of the pictures' bytes.

    Turns before `first` are left out, for who has their entries: they depend on no later turn.
    """
    found = dict.fromkeys(g.model for turn in transcript.turns for g in turn.generated)
    models = {model: number for number, model in enumerate(found)}
    return Document(
        format=FORMAT,
        version=VERSION,
        saved=saved,
        software=dict(software),
        system=transcript.system,
        sampling=None if transcript.sampling is None else _rule(transcript.sampling),
        models=[Model(**asdict(model)) for model in models],
        pictures=[
            PictureFile(file=file, pixels_sha256=p.sha256, width=p.width, height=p.height)
            for file, p in {file: picture for picture, file in files.items()}.items()
        ],
        turns=[
            TurnEntry(
                parent=turn.parent,
                role=turn.message.role,
                parts=[_part(part, files) for part in turn.message.parts],
                generated=[_piece(each, models) for each in turn.generated],
            )
            for turn in transcript.turns[first:]
        ],
        head=transcript.head,
    )


def _part(part: Part, files: Mapping[Picture, str]) -> TextPart | PicturePart:
    if isinstance(part, Text):
        return TextPart(type="text", text=part.text)
    return PicturePart(type="picture", file=files[part], name=part.name, crops=part.crops)


def _rule(sampling: Sampling) -> GreedyRule | SampleRule:
    if isinstance(sampling, Greedy):
        return GreedyRule(kind="greedy")
    return SampleRule(
        kind="sample",
        temperature=float(sampling.temperature),
        top_k=int(sampling.top_k),  # numpy's numbers are accepted where it is made
        top_p=float(sampling.top_p),
        seed=None if sampling.seed is None else int(sampling.seed),
    )


def _piece(generated: Generated, models: Mapping[ModelIdentity, int]) -> GeneratedPiece:
    return GeneratedPiece(
        model=models[generated.model],
        ids=list(generated.ids),
        said_tokens=generated.said_tokens,
        text=generated.text,
        finish_reason=generated.finish_reason,
        system=generated.system,
        sampling=_rule(generated.sampling),
        max_new_tokens=generated.max_new_tokens,
        stop=list(generated.stop),
        answer_schema=None if generated.schema is None else dict(generated.schema),
        adapter=generated.adapter,
        usage=UsageCounts(**asdict(generated.usage)),
        timing=TimingSeconds(**{k: float(v) for k, v in asdict(generated.timing).items()}),
    )


# --- and back -------------------------------------------------------------------------------------


def to_transcript(document: Document, pictures: Mapping[str, Picture]) -> Transcript:
    """Return the transcript of a document; `pictures` by the SHA-256 of their bytes.

    Raises `ConversationError` where its parts do not fit together, `IndexError` or `KeyError` where
    a model or picture is missing.
    """
    models = [ModelIdentity(**model.model_dump()) for model in document.models]
    return Transcript(
        turns=tuple(
            Turn(
                Message(turn.role, tuple(_value(part, pictures) for part in turn.parts)),
                turn.parent,
                tuple(_generated(piece, models) for piece in turn.generated),
            )
            for turn in document.turns
        ),
        head=document.head,
        system=document.system,
        sampling=None if document.sampling is None else _sampling(document.sampling),
    )


def _value(part: TextPart | PicturePart, pictures: Mapping[str, Picture]) -> Part:
    if isinstance(part, TextPart):
        return Text(part.text)
    return Picture.open(pictures[part.file], name=part.name, crops=part.crops)


def _sampling(rule: GreedyRule | SampleRule) -> Sampling:
    if isinstance(rule, GreedyRule):
        return Greedy()
    return Sample(temperature=rule.temperature, top_k=rule.top_k, top_p=rule.top_p, seed=rule.seed)


def _generated(piece: GeneratedPiece, models: list[ModelIdentity]) -> Generated:
    return Generated(
        ids=tuple(piece.ids),
        said_tokens=piece.said_tokens,
        text=piece.text,
        finish_reason=piece.finish_reason,
        model=models[piece.model],
        system=piece.system,
        sampling=_sampling(piece.sampling),
        max_new_tokens=piece.max_new_tokens,
        stop=tuple(piece.stop),
        schema=piece.answer_schema,
        adapter=piece.adapter,
        usage=Usage(**piece.usage.model_dump()),
        timing=Timing(**piece.timing.model_dump()),
    )


def picture_files(turns: Iterable[TurnEntry]) -> set[str]:
    """Return the files of all pictures in `turns`."""
    return {p.file for turn in turns for p in turn.parts if isinstance(p, PicturePart)}
