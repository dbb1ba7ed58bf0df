"""Work on many point clouds or diagrams in blocks of bounded memory, which the CPU's cores share."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


def map_blocks(function: Callable[[Tensor], Tensor], batch: Tensor, size: int) -> Tensor:
    """Concatenation of function(block) over the blocks of `size` rows of a batch; at least one block.

    On a CPU every block has one thread: its operations are so short that cores which share one and wait for each other
    gain little, and lose much when the machine is busy. Results with a gradient are computed in the calling thread.
    """
    blocks = batch.split(max(1, size))
    if batch.device.type != "cpu":
        return torch.cat([function(block) for block in blocks])
    gradient = torch.is_grad_enabled() and batch.requires_grad
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # new threads take it over
    try:
        if gradient or min(threads, len(blocks)) == 1:
            return torch.cat([function(block) for block in blocks])
        with ThreadPoolExecutor(min(threads, len(blocks))) as executor:
            return torch.cat(list(executor.map(function, blocks)))
    finally:
        torch.set_num_threads(threads)
