"""A page with logins beside an API with keys: each opens its own door, in a real browser."""

import httpx
import pytest

from gemma3vl_app.api.keys import Keys
from gemma3vl_app.server import ApiOptions
from gemma3vl_app.testing.scripted import ScriptedBackend
from tests.web.conftest import ChatPage, served

pytestmark = pytest.mark.web

KEY = "key-of-anna-0123456789"
LOGIN = ("anna", "a long password")
QUESTION = {"model": "scripted", "messages": [{"role": "user", "content": "Hello there"}]}


@pytest.fixture(scope="module")
def address():
    api = ApiOptions(keys=Keys([KEY]))
    with served(ScriptedBackend(), logins=[LOGIN], api=api) as address:
        yield address


def log_in(page, address, password):
    page.goto(address)
    page.locator("input").first.fill(LOGIN[0])
    page.locator("input[type=password]").fill(password)
    page.get_by_role("button", name="Login").click()


def test_who_logs_in_chats_though_the_api_has_keys(browser, address):
    page = browser.new_page()
    log_in(page, address, LOGIN[1])
    page.locator("#composer").wait_for()  # the login leads to the page by itself
    chat = ChatPage(page, address)
    chat.send("Hello there")
    assert chat.wait_for_answer() == "Hello there"
    page.close()


def test_a_wrong_password_shows_no_page(browser, address):
    page = browser.new_page()
    log_in(page, address, "guessed")
    page.get_by_text("Incorrect credentials").first.wait_for()
    page.goto(address)
    page.locator("input[type=password]").wait_for()
    assert page.locator("#composer").count() == 0
    page.close()


def test_a_login_opens_no_api_and_a_key_does(browser, address):
    page = browser.new_page()
    log_in(page, address, LOGIN[1])
    page.locator("#composer").wait_for()
    refused = page.request.post(f"{address}/v1/chat/completions", data=QUESTION)
    assert refused.status == 401
    headers = {"authorization": f"Bearer {KEY}"}
    asked = httpx.post(f"{address}/v1/chat/completions", json=QUESTION, headers=headers)
    assert asked.json()["choices"][0]["message"]["content"] == "Hello there"
    page.close()
