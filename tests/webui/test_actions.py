"""What a browser may send, and what the page is drawn from then."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image

from gemma3vl_app.errors import ConversationError
from gemma3vl_app.store import ConversationStore
from gemma3vl_app.testing import ScriptedBackend
from gemma3vl_app.webui import composer
from gemma3vl_app.webui.actions import Actions
from gemma3vl_app.webui.desk import Desk
from gemma3vl_app.webui.sent import settings_of
from gemma3vl_app.webui.view import Settings
from gemma3vl_app.webui.words import ENGLISH, GERMAN

PARTS = ("visit", "talk", "box", "below", "shelf")
NO_SETTINGS = ("", "", "", "", "", "", False, "", "")


class Browser:
    """Calls the page's handlers as gradio would."""

    def __init__(self, actions, secret="x" * 43, language="en", shows=None):
        self.actions = actions
        self.request = SimpleNamespace(
            username=None,
            cookies={"gemma3vl_visitor": secret},
            headers={"accept-language": language},
            query_params={"c": shows} if shows else {},
        )
        self.take([actions.load(self.request)])
        self.take(actions.watch(self.request, self.visit))

    def take(self, updates):
        for update in updates:
            new = dict(zip(PARTS, update, strict=True))
            for name, value in new.items():
                if not (isinstance(value, dict) and value.get("__type__") == "update"):
                    setattr(self, name, value)
        return self

    def act(self, handler, *fields, **event):
        event = SimpleNamespace(**event)
        return self.take(getattr(self.actions, handler)(event, self.request, self.visit, *fields))

    def submit(self, text, files=()):
        return self.act("submit", *NO_SETTINGS, text=text, files=list(files), crops="auto")

    def shelf_action(self, action, **more):
        return self.act("on_shelf", action=action, **more)

    @property
    def line(self):
        return self.below["text"]

    @property
    def texts(self):
        return [message["text"] for message in self.talk["messages"]]


@pytest.fixture
def backend():
    return ScriptedBackend(["Yes."])


@pytest.fixture
def actions(backend, tmp_path):
    with ConversationStore(tmp_path / "kept") as store:
        yield Actions(Desk.set_up(lambda: backend, tmp_path / "uploads", store))


def test_a_question_is_answered_and_listed(actions):
    browser = Browser(actions)
    assert browser.texts == []
    browser.submit("Really?")
    assert browser.texts == ["Really?", "Yes."]
    assert [entry["title"] for entry in browser.shelf["entries"]] == ["Really?"]
    assert browser.talk["id"] == browser.shelf["shown"]


def test_a_late_view_of_the_conversation_before_is_not_shown(actions):
    browser = Browser(actions).submit("Really?")
    late = browser.visit.tab.view
    browser.shelf_action("new")
    browser.take(actions._shown(browser.visit, [late]))
    assert browser.texts == []
    assert browser.visit.view.messages == ()


def test_later_values_have_higher_numbers_and_another_visit_another_name(actions):
    browser = Browser(actions)
    before = [getattr(browser, part)["order"] for part in PARTS[1:]]
    browser.submit("Really?")
    after = [getattr(browser, part)["order"] for part in PARTS[1:]]
    assert {name for name, _ in before + after} == {browser.visit.name}
    assert max(number for _, number in before) < min(number for _, number in after)
    assert Browser(actions).visit.name != browser.visit.name


def test_what_an_older_draft_costs_does_not_replace_what_a_newer_one_does(actions):
    browser = Browser(actions)
    for number in (2, 1):
        event = SimpleNamespace(text="What?", files=[], crops="auto", number=number)
        _, box = actions.weigh(event, browser.request, browser.visit, *NO_SETTINGS)
    assert box["weighed"]["number"] == 2


def test_the_box_is_given_each_draft_once(actions):
    browser = Browser(actions)
    browser.submit("Really?")
    first = browser.box["draft"]
    assert first["text"] == ""
    browser.act("on_message", *NO_SETTINGS, action="undo")
    assert browser.box["draft"]["text"] == "Really?"
    assert browser.box["draft"]["number"] > first["number"]


@pytest.mark.parametrize(
    "files", [["/etc/passwd"], ["uploads/../../etc/passwd"], [7], [None], [{"path": "x"}]]
)
def test_only_files_that_were_sent_to_the_server_are_opened(actions, backend, files):
    browser = Browser(actions).submit("What is it?", files)
    assert "sent to this server first" in browser.line
    assert backend.requests == []


def test_a_file_that_is_gone_is_told_by_name_alone(actions, tmp_path):
    browser = Browser(actions).submit("?", [str(tmp_path / "uploads" / "holiday.png")])
    assert "holiday.png is no longer on the server" in browser.line
    assert str(tmp_path) not in browser.line


def test_what_a_browser_sends_may_be_anything(actions, backend):
    browser = Browser(actions)
    browser.act("submit", *NO_SETTINGS)  # no fields at all
    browser.act("submit", *NO_SETTINGS, text=7, files="x", crops=[])
    browser.act("on_message", *NO_SETTINGS, action="example", index=99)
    browser.act("on_message", *NO_SETTINGS, action="edit", index="0", text=None)
    browser.act("on_message", *NO_SETTINGS, action={}, index=True)
    browser.shelf_action("open", id=None)
    browser.shelf_action("export", id="x", kind="exe")
    browser.shelf_action("import", file="/etc/passwd")
    browser.shelf_action("rename", id="../..", title="x")
    browser.shelf_action(["new"])
    assert backend.requests == []
    assert browser.texts == []


def test_nobody_opens_exports_or_deletes_what_is_anothers(actions):
    anna, ben = Browser(actions, "a" * 43), Browser(actions, "b" * 43)
    anna.submit("Secret")
    id = anna.talk["id"]
    for action in ("open", "export", "delete", "rename", "pin"):
        ben.shelf_action(action, id=id, kind="zip", title="mine", pinned=True)
        assert "no such conversation" in ben.line
        assert ben.texts == []
    assert Browser(actions, "b" * 43, shows=id).texts == []
    assert Browser(actions, "a" * 43, shows=id).texts == ["Secret", "Yes."]


def test_an_export_is_downloaded_once(actions):
    browser = Browser(actions)
    browser.submit("Take me along")
    browser.shelf_action("export", id=browser.talk["id"], kind="md")
    first = browser.shelf["download"]
    assert first["name"].endswith(".zip")
    browser.shelf_action("search", query="")
    assert "download" not in browser.shelf


def test_a_page_of_a_former_server_is_taken_up(actions):
    browser = Browser(actions)
    browser.submit("Before")
    browser.request.query_params["c"] = browser.talk["id"]  # the page's own address
    browser.visit = None  # this server has not seen it
    browser.submit("After")
    assert browser.texts == ["Before", "Yes.", "After", "Yes."]


def test_the_page_speaks_the_browsers_language(actions):
    assert Browser(actions, language="de-AT,de;q=0.9,en;q=0.8").talk["words"] == dict(GERMAN)
    assert Browser(actions, language="xx").talk["words"] == dict(ENGLISH)


def test_confidence_is_shown_for_the_answer_that_is_there(actions):
    browser = Browser(actions)
    browser.act("submit", *NO_SETTINGS[:6], True, "", "", text="Sure?", files=[], crops="auto")
    assert browser.talk["show_confidence"]
    assert browser.talk["messages"][-1]["tokens"]
    _, talk = actions.show_confidence(browser.visit, False)
    assert not talk["show_confidence"]


def why(browser, **event):
    """Click a word; returns all that the panel shows, in order."""
    sent = SimpleNamespace(**event)
    return [values for _, values in browser.actions.explain(sent, browser.request, browser.visit)]


def test_a_click_on_a_word_says_why_it_is_there(actions, backend, tmp_path):
    backend._chunks = ["A ", "red ", "circle, ", "a ", "red ", "square."]
    picture = tmp_path / "uploads" / "x.png"
    Image.new("RGB", (30, 20), "red").save(picture)
    browser = Browser(actions).submit("What?", [str(picture)])
    assert browser.talk["explains"]
    asked = {"number": 7, "index": 1, "start": 16, "stop": 19, "word": "red"}
    backend._seconds_per_chunk = 0.05
    first, *_, values = why(browser, method="attention", **asked)
    assert (first["is_drawn"], first["pictures"][0]["url"][:10]) == (False, "gradio_api")
    assert (values["number"], values["title"]) == (7, "Why “red”?")
    assert values["pictures"][0]["url"].startswith("data:image/jpeg;base64,")  # and no file
    assert (values["pictures"][0]["width"], values["pictures"][0]["height"]) == (30, 20)
    assert [token["percent"] for token in values["tokens"]] == ["61 %"]
    assert [each["name"] for each in values["methods"]] == ["attention", "saliency", "occlusion"]
    assert values["is_over"] and not values["is_error"]
    assert backend.traces[-1].asked.tokens == (4,)  # the second "red"
    assert why(browser, method="occlusion", **asked)[-1]["effect"].endswith("61 % → 22 %")


def test_the_panel_speaks_the_browsers_language(actions):
    browser = Browser(actions, language="de").submit("Was?")
    values = why(browser, number=1, index=1, start=0, stop=3, word="Yes")[-1]
    assert values["title"] == "Warum „Yes“?"
    assert values["says"] == GERMAN["why_no_picture"]
    assert values["methods"] == []


def test_a_word_of_another_persons_conversation_is_not_explained(actions, backend):
    anna, ben = Browser(actions, "a" * 43), Browser(actions, "b" * 43)
    anna.submit("Secret")
    ben.visit = anna.visit  # as a browser that heard of another's would name it
    assert why(ben, number=1, index=1, start=0, stop=3, word="Yes")[-1]["is_error"]
    assert backend.traces == []


@pytest.mark.parametrize(
    "event",
    [{}, {"index": "1", "start": None, "stop": [], "word": 7, "method": {}, "number": True}],
)
def test_what_a_browser_sends_about_a_word_may_be_anything(actions, backend, event):
    browser = Browser(actions).submit("Really?")
    assert why(browser, **event)[-1]["is_error"]
    assert backend.traces == []
    actions.leave(SimpleNamespace(**event), browser.request, browser.visit)
    actions.leave(SimpleNamespace(**event), browser.request, None)


def test_empty_settings_leave_it_to_the_model():
    assert settings_of(NO_SETTINGS, "auto") == Settings()


def test_settings_are_read_as_numbers():
    settings = settings_of(
        (" Be brief. ", "0,5", "40", "0.9", "7", "100", True, "{}", " mine "), "off"
    )
    assert settings == Settings(
        system="Be brief.",
        temperature=0.5,
        top_k=40,
        top_p=0.9,
        seed=7,
        max_new_tokens=100,
        confidence=True,
        schema="{}",
        crops="off",
        adapter="mine",
    )


@pytest.mark.parametrize(
    ("number", "value", "told"),
    [(1, "warm", "temperature .* a number, not 'warm'"), (2, "1.5", "top k .* a whole number")],
)
def test_a_setting_that_is_no_number_is_told(number, value, told):
    fields = list(NO_SETTINGS)
    fields[number] = value
    with pytest.raises(ConversationError, match=told):
        settings_of(tuple(fields), "auto")


def test_adapters_can_be_chosen_where_there_are_some_and_a_single_one_is(actions, backend):
    assert not actions.adapters()["visible"]
    backend.add_adapter("cats", "cats")
    assert actions.adapters()["choices"] == ["", "cats"]
    assert actions.adapters()["value"] == "cats"
    backend.add_adapter("dogs", "dogs")
    assert actions.adapters()["value"] == ""
    Browser(actions).act("submit", *NO_SETTINGS[:8], "dogs", text="Which?", files=[], crops="auto")
    assert backend.requests[-1].adapter == "dogs"


def test_an_adapter_that_went_with_its_model_is_told(actions):
    browser = Browser(actions)
    browser.act("submit", *NO_SETTINGS[:8], "gone", text="Who?", files=[], crops="auto")
    assert "has no adapter" in browser.line
    assert "in the settings" in browser.line
    assert browser.box["draft"]["text"] == "Who?"


def test_asking_for_data_brings_a_schema_and_other_questions_take_it_away(actions):
    def chosen(key, schema):
        return actions.preset(SimpleNamespace(key=key), schema)

    schema, settings = chosen(composer.WITH_SCHEMA, None)
    assert json.loads(schema["value"])["type"] == "object"
    assert settings["open"]
    assert chosen(composer.WITH_SCHEMA, '{"mine": 1}')[0]["value"] == '{"mine": 1}'
    assert chosen("preset_short", composer.SCHEMA)[0]["value"] is None
    assert "value" not in chosen("preset_short", '{"mine": 1}')[0]
