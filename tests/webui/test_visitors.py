"""The secret by which a browser is known again."""

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from gemma3vl_app.webui.visitors import COOKIE, RememberVisitors, visitor_of


@pytest.fixture
def app():
    def who(request):
        return PlainTextResponse(visitor_of(request.cookies) or "nobody")

    return RememberVisitors(Starlette(routes=[Route("/", who)]))


def test_the_first_page_knows_whose_it_is_and_so_do_all_after_it(app):
    browser = TestClient(app)
    first = browser.get("/")
    assert len(first.text) == 43
    assert browser.cookies[COOKIE] == first.text
    again = browser.get("/")
    assert again.text == first.text
    assert "set-cookie" not in again.headers


def test_two_browsers_are_two_people(app):
    assert TestClient(app).get("/").text != TestClient(app).get("/").text


@pytest.mark.parametrize("brought", ["", "x", "a" * 42, "a" * 44, "a" * 42 + "!", "../../etc"])
def test_a_cookie_that_is_none_of_ours_is_replaced(app, brought):
    answer = TestClient(app, cookies={COOKIE: brought}).get("/")
    assert answer.text != brought
    assert len(answer.text) == 43


def test_scripts_cannot_read_it_and_other_sites_cannot_send_it(app):
    plain = TestClient(app).get("/").headers["set-cookie"].lower()
    assert "httponly" in plain
    assert "samesite=lax" in plain
    assert "secure" not in plain.replace("httponly", "")
    framed = TestClient(app, base_url="https://space.test").get("/").headers["set-cookie"].lower()
    assert {"httponly", "secure", "samesite=none", "partitioned"} <= set(framed.split("; "))
