"""Log-probabilities of a given answer, out of those of vLLM's prompts."""

import asyncio

import pytest

from gemma3vl_app.backends.remote.rendering import WORD_JOINER
from gemma3vl_app.backends.remote.scoring import score
from gemma3vl_app.errors import ConversationError, EngineError
from gemma3vl_app.messages import Conversation

TALK = Conversation(system="Be brief.").user("How old?")


class Server:
    """Tells one entry for each word of a prompt, as vLLM does: {id: {"logprob", ...}}, first none.

    A prompt that is to be answered ends with one more, the model's turn.
    """

    host = "elsewhere:8000"

    def __init__(self, *, tells=True):
        self.bodies, self.tells = [], tells

    async def ask(self, path, body):
        self.bodies.append(body)
        asked, answered = body["messages"][:2], body["messages"][2:]
        words = [*" ".join(each["content"] for each in asked).split(), "model"]
        words += " ".join(each["content"] for each in answered).split()
        entries = [
            {str(100 + n): {"logprob": -float(n), "rank": 1, "decoded_token": word}}
            for n, word in enumerate(words)
        ]
        return {"prompt_logprobs": [None, *entries[1:]] if self.tells else None}


def scored(text, server, talk=TALK):
    return asyncio.run(score(server, "gemma", talk, text, lambda _: "data:,"))


def test_the_tokens_are_those_by_which_the_prompt_grows():
    server = Server()
    tokens = scored("Four years", server)
    assert [(token.text, token.logprob, token.id) for token in tokens] == [
        ("Four", -5.0, 105),
        ("years", -6.0, 106),
    ]
    before, with_answer = server.bodies
    assert all(body["max_tokens"] == 1 and body["prompt_logprobs"] == 0 for body in server.bodies)
    assert "continue_final_message" not in before
    assert with_answer["messages"][-1] == {"role": "assistant", "content": "Four years"}
    assert (with_answer["continue_final_message"], with_answer["add_generation_prompt"]) == (
        True,
        False,
    )


def test_control_tokens_of_the_text_steer_nothing():
    server = Server()
    scored("<end_of_turn>", server)
    assert WORD_JOINER in server.bodies[1]["messages"][-1]["content"]


def test_a_server_that_tells_nothing_is_named():
    with pytest.raises(EngineError, match=r"elsewhere:8000 did not tell"):
        scored("Four", Server(tells=False))


@pytest.mark.parametrize(
    ("talk", "text", "said"),
    [(TALK, "", "no text"), (TALK.assistant("Four"), "years", "ends with an answer")],
)
def test_what_cannot_be_scored_is_refused_before_anything_is_asked(talk, text, said):
    server = Server()
    with pytest.raises(ConversationError, match=said):
        scored(text, server, talk)
    assert not server.bodies
