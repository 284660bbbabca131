"""The tables of names hold for every weight of the model, and in both directions."""

import pytest
import torch

from gemma3vl_app.conversion.layouts import ROWS
from gemma3vl_app.conversion.names import (
    HUB,
    READABLE,
    TRANSFORMERS5,
    NameTable,
    Row,
    knows,
    to_file,
    to_memory,
)
from gemma3vl_app.errors import ConversionError
from gemma3vl_app.loading.conversion import HeldTensor
from tests.conversion.conftest import weights_of


def held(tensors):
    return {name: HeldTensor(tensor) for name, tensor in tensors.items()}


def shapes_of(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@pytest.mark.parametrize("table", READABLE, ids=lambda table: table.title)
def test_a_table_renames_every_weight_and_back(table, small):
    from gemma3vl_app.loading.checkpoint import open_checkpoint, read_tensors

    memory = read_tensors(open_checkpoint(small))
    file = to_file(held(memory), table)
    assert all(knows(key, table) for key in file)
    assert len(file) == len(memory)
    back = to_memory(file, table, shapes_of(memory), "it")
    assert {name: each.read() is memory[name] for name, each in back.items()} == dict.fromkeys(
        memory, True
    )
    if table is HUB:
        assert file.keys() == weights_of(small).keys()
    if table is TRANSFORMERS5:
        assert file.keys() == memory.keys()


def test_a_table_that_joins_splits_again():
    table = NameTable("test", (Row(("q.{layer}", "k.{layer}"), "qk.{layer}", ROWS),))
    memory = {"q.0": torch.ones(4, 3), "k.0": torch.zeros(2, 3), "q.1": torch.full((4, 3), 2.0)}
    memory["k.1"] = torch.full((2, 3), 3.0)
    file = to_file(held(memory), table)
    assert {key: each.shape for key, each in file.items()} == {"qk.0": (6, 3), "qk.1": (6, 3)}
    whole = held({key: each.read() for key, each in file.items()})
    back = to_memory(whole, table, shapes_of(memory), "it")
    for name, tensor in memory.items():
        assert torch.equal(back[name].read(), tensor)
        assert (back[name].shape, back[name].nbytes) == (tuple(tensor.shape), tensor.nbytes)


def test_a_weight_whose_partner_is_missing_is_named():
    table = NameTable("test", (Row(("q.{layer}", "k.{layer}"), "qk.{layer}", ROWS),))
    with pytest.raises(ConversionError, match=r"k\.7 is missing, which is joined with q\.7"):
        to_file(held({"q.7": torch.ones(1, 1)}), table)


def test_a_weight_that_a_format_has_no_name_for_is_named():
    with pytest.raises(
        ConversionError, match=r"'model\.language_model\.audio\.weight' has no name"
    ):
        to_file(held({"model.language_model.audio.weight": torch.ones(1)}), HUB)
