"""Run as a program: Megatron-Core loads a checkpoint on two processes and saves it from there.

    python -m tests.conversion.megatron.reshard_by_core FROM TO

Each process holds its half of each matrix (tensor parallel 2), as Megatron-Core itself shares them
out, and writes it. `FROM` and `TO` are folders of one iteration.
"""

import sys
from pathlib import Path

import torch

from tests.conversion.megatron.write_by_core import whole_model, without_gpu

PROCESSES = 2


def work(rank: int, source: str, target: str, port: int) -> None:
    """Load this process's share, and save it with the other one's."""
    from megatron.core import dist_checkpointing, parallel_state

    without_gpu()
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group(
        "gloo", init_method=address, world_size=PROCESSES, rank=rank
    )
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=PROCESSES)
    model = whole_model(PROCESSES).to(torch.bfloat16)
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))  # what is not loaded would be seen
    metadata = {
        "singleton_local_shards": False,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }
    wanted = {"model": model.sharded_state_dict(metadata=metadata)}
    loaded = dist_checkpointing.load(wanted, source)
    model.load_state_dict(loaded["model"], strict=False)
    qkv = model.language_model.decoder.layers[0].self_attention.linear_qkv.weight
    print(f"process {rank} holds queries, keys and values of {tuple(qkv.shape)}")
    state = {"iteration": 8, "model": model.sharded_state_dict(metadata=metadata)}
    dist_checkpointing.save(state, target)
    torch.distributed.destroy_process_group()


def main(source: Path, target: Path) -> None:
    from torch.distributed.elastic.utils.distributed import get_free_port

    target.mkdir(parents=True)
    arguments = (str(source), str(target), get_free_port())
    torch.multiprocessing.spawn(work, arguments, nprocs=PROCESSES)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
