"""A model spread over devices gives the same tokens; what lies on disk is a memory map."""

from pathlib import Path

import pytest
import torch

from gemma3vl_app.backends.local import load
from gemma3vl_app.generation import Greedy
from gemma3vl_app.loading import assembly, load_model
from gemma3vl_app.loading.cache import CACHE_VARIABLE
from gemma3vl_app.messages import Conversation
from tests.engine.reference import picture

LAYERS = "model.language_model.layers"
CPU_AND_DISK = {
    "model.vision_tower": "cpu",
    "model.multi_modal_projector": "cpu",
    "model.language_model.embed_tokens": "cpu",
    "model.language_model.rotary_emb": "cpu",
    "model.language_model.norm": "cpu",
    "lm_head": "cpu",
    **{f"{LAYERS}.{layer}": "cpu" if layer < 2 else "disk" for layer in range(6)},
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def answers(source, **options):
    conversation = Conversation().user(picture(1), picture(2), "Which one is older, and why?")
    with load(source, **options) as backend:
        first = backend.stream(conversation, sampling=Greedy(), max_new_tokens=12).answer
        more = conversation.assistant(first.text).user("Go on." * 20)
        second = backend.stream(more, sampling=Greedy(), max_new_tokens=12).answer
    return [token.id for answer in (first, second) for token in answer.tokens]


def mapped(tensor):
    address = tensor.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, stop = (int(end, 16) for end in line.split()[0].split("-"))
        if start <= address < stop:
            return line.endswith(".safetensors")
    return False


@pytest.mark.parametrize("weights", ["fp32", "bf16", "nf4", "int8"])
def test_cpu_and_disk_give_the_tokens_of_the_unsharded_model(tiny, cache, weights):
    whole = answers(tiny, weights=weights)
    assert answers(tiny, weights=weights, device_map=CPU_AND_DISK) == whole
    assert len(whole) == 24


@pytest.mark.parametrize("weights", ["fp32", "bf16", "nf4", "int8"])
def test_layers_on_disk_are_memory_maps(tiny, cache, weights):
    """fp32 differs from the file's bf16: it takes a converted file."""
    model = load_model(tiny, weights=weights, device_map=CPU_AND_DISK).model
    layers = model.model.language_model.layers
    assert all(mapped(p.data) for layer in layers[2:] for p in layer.parameters())


def test_a_map_that_forgets_a_layer_is_refused(tiny):
    with pytest.raises(Exception, match=r"layers\.5"):
        load_model(tiny, device_map={k: v for k, v in CPU_AND_DISK.items() if ".5" not in k})


TWO_GPUS = {
    key: "cuda:1" if key.startswith(LAYERS) and int(key.split(".")[-1]) > 2 else "cuda:0"
    for key in CPU_AND_DISK
}


@pytest.mark.parametrize(
    ("device_map", "route"),
    [
        (TWO_GPUS, "00011100"),
        ({"": "cuda:0", f"{LAYERS}.3": "cuda:1"}, "00010000"),
        ({"": "cuda:0", LAYERS: "cuda:1", f"{LAYERS}.0": "cuda:0"}, "01111100"),
    ],
    ids=["every part", "one layer", "prefixes"],
)
def test_parts_on_other_devices_fetch_their_inputs(tiny, monkeypatch, device_map, route):
    """The hooks of a map over two GPUs, recorded on this machine; real GPUs are not measured.

    The route is six layers, the last norm and the output matrix.
    """
    loaded = load_model(tiny, weights="fp32")
    fetched: list[str] = []

    def record(inputs, device):
        fetched.append(device)
        return inputs

    monkeypatch.setattr(assembly, "send_to_device", record)
    assembly._connect_devices(loaded.model, device_map)
    with torch.inference_mode():
        loaded.model(input_ids=torch.tensor([[2, 105, 107]]), use_cache=False)
    order = fetched[::2]  # positional and named inputs of each part
    assert [device[-1] for device in order[-8:]] == list(route)
