"""Data comes back typed and whole, or not at all."""

import json

import pydantic
import pytest
from PIL import Image

import gemma3vl_app as gv
from gemma3vl_app.backends.local import load
from gemma3vl_app.errors import ConversationError, EngineError
from gemma3vl_app.generation import Greedy
from gemma3vl_app.testing.scripted import ScriptedBackend

PICTURE = Image.new("RGB", (64, 64), "red")
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "round": {"type": "boolean"}},
    "required": ["colour", "round"],
}


class Shape(pydantic.BaseModel):
    """What a picture shows."""

    colour: str = pydantic.Field(max_length=12, description="in English")
    count: int = pydantic.Field(ge=0, le=9)

    @pydantic.field_validator("colour")
    @classmethod
    def _known(cls, colour: str) -> str:
        if colour == "octarine":
            raise ValueError("no such colour")
        return colour


def test_a_pydantic_model_comes_back_as_an_instance():
    backend = ScriptedBackend(['{"colour": "red", ', '"count": 2}'])
    found = gv.extract(backend, PICTURE, Shape)
    assert found.value == Shape(colour="red", count=2)
    assert str(found) == found.text == '{"colour": "red", "count": 2}'
    (request,) = backend.requests
    assert request.sampling == Greedy()
    assert request.schema["additionalProperties"] is False


def test_a_json_schema_comes_back_as_json_and_is_closed():
    backend = ScriptedBackend(['{"colour": "red", "round": false}'])
    assert gv.extract(backend, [PICTURE], SCHEMA).value == {"colour": "red", "round": False}
    assert backend.requests[0].schema == {**SCHEMA, "additionalProperties": False}
    assert "additionalProperties" not in SCHEMA


def test_the_model_is_shown_the_fields_and_the_instructions():
    backend = ScriptedBackend(['{"colour": "red", "count": 2}'])
    gv.extract(backend, PICTURE, Shape, instructions="Only the {largest} shape. ")
    said = backend.requests[0].conversation.messages[0].text
    assert "in English" in said
    assert said.endswith("}\n\nOnly the {largest} shape.")
    assert len(backend.requests[0].conversation.pictures) == 1


@pytest.mark.parametrize("schema", [Shape, SCHEMA])
def test_a_cut_answer_is_an_error_and_no_half_a_value(schema):
    backend = ScriptedBackend(["{", '"colour": "red", ', '"count": 2', "}"])
    with pytest.raises(ConversationError, match=r"cut after 3 tokens.*Raise max_new_tokens"):
        gv.extract(backend, PICTURE, schema, max_new_tokens=3)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ('{"colour": "octarine", "count": 2}', "does not fit Shape: colour: .*no such colour"),
        ('{"colour": "red"}', "does not fit Shape: count"),
        ("Sure! Here it is", "not valid JSON"),
        ('{"colour": "red", "colour": "green", "count": 1}', "the key 'colour' twice"),
    ],
)
def test_an_answer_that_does_not_fit_is_told_in_a_line(said, told):
    with pytest.raises(EngineError, match=told) as raised:
        gv.extract(ScriptedBackend([said]), PICTURE, Shape)
    assert "\n" not in str(raised.value)


def test_an_answer_that_is_no_json_is_told():
    with pytest.raises(EngineError, match="not valid JSON"):
        gv.extract(ScriptedBackend(["Sure!"]), PICTURE, SCHEMA)


@pytest.mark.parametrize("schema", [3, int, {"a": {1}}, None])
def test_what_is_no_schema_is_told(schema):
    with pytest.raises(ConversationError, match=r"(?i)schema"):
        gv.extract(ScriptedBackend(), PICTURE, schema)


def test_a_random_model_gives_valid_data(tiny):
    with load(tiny) as backend:
        assert gv.extract(backend, PICTURE, SCHEMA).value.keys() == {"colour", "round"}
        shape = gv.extract(backend, [PICTURE, PICTURE], Shape)
        assert Shape.model_validate(json.loads(shape.text)) == shape.value
        with pytest.raises(ConversationError, match="Raise max_new_tokens"):
            gv.extract(backend, PICTURE, SCHEMA, max_new_tokens=3)
