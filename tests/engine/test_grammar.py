"""JSON schemas are enforced while decoding: even a random model can only say valid JSON."""

import json

import pydantic
import pytest

from gemma3vl_app.backends.local import load
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.generation import Sample
from gemma3vl_app.messages import Conversation
from gemma3vl_app.schemas import closed
from tests.engine.reference import picture


class Shape(pydantic.BaseModel):
    """What a picture shows."""

    colour: str = pydantic.Field(max_length=12)
    count: int = pydantic.Field(ge=0, le=9)
    round: bool


@pytest.mark.parametrize("seed", range(4))
def test_a_random_model_answers_in_the_schema(backend, seed):
    conversation = Conversation().user(picture(seed), "Describe it as JSON.")
    answer = backend.stream(
        conversation, schema=Shape, sampling=Sample(seed=seed), max_new_tokens=400
    ).answer
    assert answer.finish_reason == "stop"
    Shape.model_validate_json(answer.text)


def test_a_schema_given_as_a_dict_works_beside_free_answers(backend):
    free = backend.stream(Conversation().user("Go"), max_new_tokens=40)
    schema = {"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 2, "maxItems": 3}
    answer = backend.stream(
        Conversation().user("Two colours"), schema=schema, sampling=Sample(seed=1)
    ).answer
    assert set(json.loads(answer.text)) <= {"red", "blue"}
    assert free.answer.tokens


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, 3, {"$ref": "#/nowhere"}, {"type": {1}}])
def test_a_bad_schema_is_refused_in_plain_words(backend, schema):
    with pytest.raises(ConversationError, match=r"(?i)schema"):
        backend.stream(Conversation().user("Go"), schema=schema)


def test_a_pydantic_model_means_its_own_fields_only():
    schema = closed(Shape.model_json_schema())
    assert schema["additionalProperties"] is False
    assert "additionalProperties" not in schema["properties"]
    open_on_purpose = {"properties": {"a": {}}, "additionalProperties": {"type": "string"}}
    assert closed(open_on_purpose) == open_on_purpose


def test_an_answer_cut_inside_its_json_goes_on_inside_the_schema(backend):
    schema = {"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 3, "maxItems": 3}
    conversation = Conversation().user("Three colours")
    options = {"schema": schema, "sampling": Sample(seed=1), "session": "cut"}
    cut = backend.stream(conversation, max_new_tokens=4, **options).answer
    rest = backend.stream(conversation.assistant(cut.text), **options).answer
    assert len(json.loads(cut.text + rest.text)) == 3
    with pytest.raises(ConversationError, match="does not fit"):
        backend.stream(conversation.assistant("Sure! Here"), **options)


@pytest.mark.slow
def test_the_demo_answers_in_a_schema_though_its_tokenizer_knows_a_token_more_than_its_logits():
    with load("demo") as demo:
        conversation = Conversation().user(picture(1), "What color is it?")
        schema = {"type": "object", "properties": {"red": {"type": "boolean"}}, "required": ["red"]}
        answer = demo.stream(conversation, schema=closed(schema)).answer
    assert set(json.loads(answer.text)) == {"red"}
