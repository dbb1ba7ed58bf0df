"""Seeds and random states of the global generators; loaders have generators of their own."""

import random

import numpy as np
import torch
from torch import Tensor


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_process(seed: int, epoch: int, step: int, rank: int) -> None:
    """Random numbers of its own for one of several processes, from a step of an epoch on."""
    (own,) = np.random.SeedSequence((seed, epoch, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(own))


def random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
