"""Addresses of servers are told from names of models, and read."""

from pathlib import Path

import pytest

from gemma3vl_app import catalog
from gemma3vl_app.addresses import Address, is_address, parse_servers
from gemma3vl_app.errors import LoadError
from gemma3vl_app.planning import plan


@pytest.mark.parametrize("source", ["http://host:8000/v1", "HTTPS://a.example", " http://x"])
def test_an_address_is_no_model_of_this_machine(source):
    assert is_address(source)


@pytest.mark.parametrize("source", ["4b-it", "google/gemma-3-4b-it", "http", Path("http://x")])
def test_a_name_or_a_path_is_no_address(source):
    assert not is_address(source)


def test_the_version_is_added_where_it_is_missing():
    for given in ("http://Host:8000", "http://host:8000/", "http://host:8000/v1/chat/completions"):
        (address,) = parse_servers(given).addresses
        assert address == Address("http://host:8000/v1")
        assert (address.host, address.root) == ("host:8000", "http://host:8000")
    (other,) = parse_servers("https://host/openai/v2").addresses
    assert other.base == "https://host/openai/v2"


def test_several_addresses_name_one_model():
    found = parse_servers("http://a:1#google/gemma-3-4b-it, http://b:2")
    assert [address.host for address in found.addresses] == ["a:1", "b:2"]
    assert found.model == "google/gemma-3-4b-it"
    with pytest.raises(LoadError, match="2 models: x, y"):
        parse_servers("http://a#x,http://b#y")


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("http://", "looks like"),
        ("http://host:port", "looks like"),
        ("http://a,ftp://b", "looks like"),
        ("http://me:secret@host", "password"),
        ("http://host/v1?key=secret", "question mark"),
        (",", "between 1 and"),
    ],
)
def test_what_is_no_address_is_refused_without_repeating_secrets(source, word):
    with pytest.raises(LoadError, match=word) as error:
        parse_servers(source)
    assert "secret" not in str(error.value)


def test_a_server_places_its_own_model():
    catalog.check_source("http://host:8000/v1", servers=True)
    with pytest.raises(LoadError, match="placed and computed by its server"):
        catalog.check_source("http://host:8000/v1")
    with pytest.raises(LoadError, match="host:8000 is placed"):
        plan("http://host:8000/v1")
