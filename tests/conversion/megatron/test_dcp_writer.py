"""Writing a folder of torch.distributed.checkpoint holds a layer at a time."""

import dataclasses
import math
import weakref

import numpy as np
import torch

from gemma3vl_app.conversion.dcp_writer import write_dcp
from gemma3vl_app.conversion.megatron_layers import in_pieces


@dataclasses.dataclass
class Watched:
    """A weight that knows which of the tensors that were read are still in memory."""

    shape: tuple[int, ...]
    read_so_far: list[weakref.ref]
    dtype = torch.float32

    @property
    def nbytes(self):
        return 4 * math.prod(self.shape)

    def read(self):
        array = np.ones(self.shape, dtype=np.float32)  # goes with the memory of its tensor
        self.read_so_far.append(weakref.ref(array))
        return torch.from_numpy(array)


def test_a_layer_is_read_when_it_is_written_and_goes_when_the_next_is(tmp_path):
    """What is in no layer stays until all is written: so torch's writer does."""
    layers, others = [], []
    tensors = {
        f"decoder.layers.{number}.mlp.linear_fc2.weight": Watched((8, 8), layers)
        for number in range(6)
    }
    tensors |= {f"vision_tower.{number}": Watched((8, 8), others) for number in range(3)}
    alive = []

    def about_to(piece):
        alive.append(tuple(sum(each() is not None for each in read) for read in (layers, others)))

    write_dcp(tmp_path, in_pieces(tensors), [], about_to)
    assert alive[:6] == [(0, 0), *[(1, 0)] * 5]
    assert alive[6:] == [(1, 0), (1, 1), (1, 2)]
