"""The box to write in: pictures by every way, what they cost, and in which order they go."""

from dataclasses import replace

import pytest
from PIL import Image

from gemma3vl_app.testing.scripted import ScriptedBackend

pytestmark = pytest.mark.web

PASTE = """async ([selector, event_name, colour]) => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 60, height: 40 });
  const pen = canvas.getContext("2d");
  pen.fillStyle = colour;
  pen.fillRect(0, 0, 60, 40);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
  const data = new DataTransfer();
  data.items.add(new File([blob], "shot.png", { type: "image/png" }));
  const event = event_name === "paste"
    ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true })
    : new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
  document.querySelector(selector).dispatchEvent(event);
}"""


@pytest.mark.parametrize(
    ("how", "where"), [("paste", "#composer textarea"), ("drop", "#conversation")]
)
def test_a_picture_is_pasted_or_dropped_and_sent(open_page, how, where):
    backend = ScriptedBackend(["Green."])
    page = open_page(backend)
    page.page.evaluate(PASTE, [where, how, "#00ff00"])
    page.wait_for_items(1)
    page.send("Which colour?")
    assert page.wait_for_answer() == "Green."
    (picture,) = backend.requests[0].conversation.pictures
    assert (picture.name, picture.width, picture.height) == ("shot.png", 60, 40)
    assert picture.rgb.getpixel((30, 20)) == (0, 255, 0)


def test_pictures_say_what_they_cost_and_are_gone_once_sent(open_page, pictures):
    page = open_page(ScriptedBackend(["Yes."]))
    page.attach(*pictures)
    costs = page.page.locator("#composer .item .cost").all_inner_texts()
    assert costs[0] == "300 \N{MULTIPLICATION SIGN} 200 · 64 tokens"
    meter = page.page.locator("#composer .meter")
    assert "8,192 tokens" in meter.inner_text()
    assert int(meter.inner_text().split(" / ")[0].replace(",", "")) >= 2 * 64
    page.send("What?")
    page.wait_for_answer()
    page.page.wait_for_timeout(500)  # a late word on what they cost would bring them back
    assert page.names() == []
    assert page.box.input_value() == ""


def test_the_end_of_the_conversation_stays_in_sight_when_pictures_are_added(open_page, pictures):
    page = open_page(ScriptedBackend(["word\n" * 60, "The end."]))
    page.send("Go")
    page.wait_for_answer()
    page.attach(*pictures)
    page.page.wait_for_function(
        """() => { const log = document.querySelector("#conversation .conversation");
                   return log.scrollHeight - log.scrollTop - log.clientHeight < 2; }"""
    )


def test_a_box_that_grows_just_after_a_message_leaves_the_end_in_sight(open_page):
    page = open_page(ScriptedBackend(["word\n" * 60, "The end."]))
    page.send("Go")
    page.wait_for_answer()
    page.page.evaluate(  # the browser tells of scrolling after it has made room for the box
        """() => { const log = document.querySelector("#conversation .conversation");
                   log.style.maxHeight = "150px"; log.dispatchEvent(new Event("scroll")); }"""
    )
    page.page.wait_for_function(
        """() => { const log = document.querySelector("#conversation .conversation");
                   return log.scrollHeight - log.scrollTop - log.clientHeight < 2; }""",
        timeout=5000,
    )


def test_who_scrolls_up_is_left_there_while_an_answer_grows(open_page):
    page = open_page(ScriptedBackend(["word\n"] * 60, seconds_per_chunk=0.05))
    page.send("Go")
    page.page.wait_for_function("document.querySelector('.conversation').scrollTop > 300")
    page.page.locator("#conversation .conversation").hover()
    page.page.mouse.wheel(0, -2000)
    page.page.wait_for_function("document.querySelector('.conversation').scrollTop < 50")
    page.wait_for_answer()
    assert page.page.evaluate("document.querySelector('.conversation').scrollTop") < 50


def test_a_long_picture_is_said_to_be_squashed(open_page, tmp_path):
    Image.new("RGB", (60, 300), "red").save(tmp_path / "tower.png")
    page = open_page(ScriptedBackend())
    page.attach(tmp_path / "tower.png")
    assert "squashed to a square" in page.page.locator("#composer .item.squashed").inner_text()


class Cropping(ScriptedBackend):
    """Cuts a long picture into two halves, unless crops are off."""

    def preview(self, conversation, **options):
        halves = ((0, 0, 150, 60), (150, 0, 300, 60))
        crops = tuple(() if p.crops == "off" else halves for p in conversation.pictures)
        return replace(super().preview(conversation, **options), crops=crops)


def test_crops_are_drawn_on_the_picture_and_can_be_switched_off(open_page, tmp_path):
    Image.new("RGB", (300, 60), "red").save(tmp_path / "wide.png")
    page = open_page(Cropping())
    page.attach(tmp_path / "wide.png")
    drawn = page.page.locator("#composer .item .crop")
    assert drawn.count() == 2
    lefts = [drawn.nth(number).bounding_box()["x"] for number in range(2)]
    assert lefts[1] - lefts[0] == pytest.approx(drawn.first.bounding_box()["width"], abs=3)
    page.page.locator("#composer select.crops").select_option("off")
    drawn.first.wait_for(state="detached")
    assert drawn.count() == 0


def test_pictures_are_sent_in_the_order_they_were_put_into(open_page, pictures):
    backend = ScriptedBackend(["Yes."])
    page = open_page(backend)
    page.attach(*pictures)
    assert page.names() == ["red.png", "blue.png"]
    page.page.get_by_role("button", name="Move right").click()
    assert page.names() == ["blue.png", "red.png"]
    page.wait_for_items(2)
    page.send("Which is first?")
    page.wait_for_answer()
    sent = backend.requests[0].conversation.pictures
    assert [picture.name for picture in sent] == ["blue.png", "red.png"]


def test_a_picture_is_taken_out_again(open_page, pictures):
    backend = ScriptedBackend(["Yes."])
    page = open_page(backend)
    page.attach(*pictures)
    page.page.get_by_role("button", name="Remove").first.click()
    page.wait_for_items(1)
    page.send("Which?")
    page.wait_for_answer()
    assert [picture.name for picture in backend.requests[0].conversation.pictures] == ["blue.png"]


def test_a_pdf_comes_as_its_pages(open_page, tmp_path):
    pages = [Image.new("RGB", (200, 280), colour) for colour in ("white", "yellow")]
    pages[0].save(tmp_path / "paper.pdf", save_all=True, append_images=pages[1:])
    backend = ScriptedBackend(["Two."])
    page = open_page(backend)
    page.page.locator("#composer input[type=file]").set_input_files(str(tmp_path / "paper.pdf"))
    page.wait_for_items(2)
    page.send("How many pages?")
    page.wait_for_answer()
    names = [picture.name for picture in backend.requests[0].conversation.pictures]
    assert names == ["paper.pdf, page 1", "paper.pdf, page 2"]


def test_a_thumbnail_is_enlarged_with_its_cost(open_page, pictures):
    page = open_page(ScriptedBackend())
    page.attach(pictures[0])
    page.page.get_by_role("button", name="red.png").click()
    dialog = page.page.get_by_role("dialog", name="red.png")
    assert "64 tokens" in dialog.inner_text()
    page.page.keyboard.press("Escape")
    dialog.wait_for(state="detached")


def test_shift_enter_breaks_the_line_and_escape_stops(open_page):
    backend = ScriptedBackend(["word "] * 100, seconds_per_chunk=0.1)
    page = open_page(backend)
    page.box.fill("one")
    page.box.press("Shift+Enter")
    page.box.type("two")
    page.box.press("Enter")
    page.wait_for_text()
    page.box.press("Escape")
    page.wait_for_line("Stopped")
    assert backend.requests[0].conversation.messages[0].text == "one\ntwo"


def test_enter_twice_sends_once(open_page):
    backend = ScriptedBackend(["Yes."], seconds_per_chunk=0.3)
    page = open_page(backend)
    page.box.fill("Once")
    page.box.press("Enter")
    page.box.press("Enter")
    page.wait_for_answer()
    page.page.wait_for_timeout(500)
    assert len(backend.requests) == 1


def test_a_preset_is_put_into_the_box_and_can_be_changed(open_page):
    page = open_page(ScriptedBackend())
    page.page.get_by_label("Ready-made questions").select_option(label="Caption, short")
    assert page.box.input_value() == "Describe this picture in one sentence."


def test_settings_hold_for_the_next_answer(open_page):
    backend = ScriptedBackend(["Yes."])
    page = open_page(backend)
    page.page.locator("#settings button").first.click()
    page.page.get_by_label("System prompt").fill("Be brief.")
    page.page.get_by_label("Temperature").fill("0.5")
    page.page.get_by_label("Seed").fill("7")
    page.page.get_by_label("Seed").blur()
    page.send("Hello")
    page.wait_for_answer()
    request = backend.requests[0]
    assert request.conversation.system == "Be brief."
    assert (request.sampling.temperature, request.sampling.seed) == (0.5, 7)


def test_a_picture_is_taken_with_the_camera(open_page):
    backend = ScriptedBackend(["A figure."])
    page = open_page(backend)
    page.page.get_by_role("button", name="Camera").click()
    page.page.wait_for_function("document.querySelector('#composer video')?.videoWidth > 0")
    page.page.get_by_role("button", name="Take picture").click()
    page.wait_for_items(1)
    page.send("What do you see?")
    page.wait_for_answer()
    (picture,) = backend.requests[0].conversation.pictures
    assert picture.name == "camera.png"
    assert len(picture.rgb.getcolors(1 << 24)) > 1  # it is not just black


def test_a_camera_that_may_not_be_used_is_told(open_page):
    page = open_page(ScriptedBackend())
    page.page.evaluate(
        "() => { navigator.mediaDevices.getUserMedia = () => Promise.reject(new Error()); }"
    )
    page.page.get_by_role("button", name="Camera").click()
    page.page.locator("#composer .note", has_text="camera cannot be used").wait_for()


def test_data_is_asked_for_with_a_schema_that_can_be_changed(open_page, pictures):
    backend = ScriptedBackend(['{"title": null, "entries": []}'])
    page = open_page(backend)
    page.attach(pictures[0])
    page.page.get_by_label("Ready-made questions").select_option(label="Take out the data as JSON")
    page.page.get_by_text("Answer as JSON of this schema").wait_for()  # the settings have opened
    page.page.locator("#settings", has_text="entries").wait_for()
    page.box.press("Enter")
    page.wait_for_answer()
    assert set(backend.requests[0].schema["properties"]) == {"title", "entries"}
    page.page.get_by_label("Ready-made questions").select_option(label="Caption, short")
    page.page.locator("#settings", has_not_text="entries").wait_for()
    page.box.press("Enter")
    page.wait_for_messages(4)
    page.wait_for_answer()
    assert backend.requests[1].schema is None


def test_how_sure_the_model_was_is_shown_on_demand_with_alternatives(open_page):
    page = open_page(ScriptedBackend(["Red ", "circle."]))
    page.page.locator("#settings button").first.click()
    page.page.get_by_label("Show how sure the model was").check()
    page.send("What?")
    page.wait_for_answer()
    token = page.page.locator("#conversation .token", has_text="Red")
    assert token.get_attribute("title").startswith("61 %")  # exp(-0.5)
    page.page.get_by_label("Show how sure the model was").uncheck()
    token.wait_for(state="detached")
    assert page.said() == ["Red circle."]
