"""The steps of an epoch: run one by one, or on CUDA replayed as a graph, which gives the same numbers.

A step of a small network is hundreds of kernels of a few microseconds, which a host launches more slowly than a GPU
runs them; a graph launches all at once.
"""

import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from dataset import TrainLoader

from ..errors import UserError
from .graphs import Capture, Replayed
from .meters import Meters
from .objective import Objective

# Steps that run as they are before one is captured: they load kernels, fill caches and make the optimizer's buffers.
WARM_UP = 3


def step(
    objective: Objective,
    forward: nn.Module,
    optimizer: torch.optim.Optimizer,
    meters: Meters,
    number: int | Tensor,
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
) -> None:
    """A step on a batch, number `number` of the epoch from 0 on. Everything it makes is gone when it returns, but for
    the gradients."""
    logits, terms = forward(images, labels, indices)
    loss = objective.total(terms)
    optimizer.zero_grad(set_to_none=True)  # so that backward writes the gradients, and need not add them to zeros
    loss.backward()
    optimizer.step()
    meters.update(number, loss, terms, logits, labels)


class ReplayedSteps:
    """Steps of a loader's whole batches that read and write nothing but tensors that stay where they are.

    cursor: int64 scalar on the device, the position in the epoch from which the next batch is taken; each step moves
    it.
    """

    def __init__(
        self,
        objective: Objective,
        loader: TrainLoader,
        optimizer: torch.optim.Optimizer,
        meters: Meters,
        capture: Capture,
    ):
        self.objective, self.optimizer, self.meters = objective, optimizer, meters
        self.size, self.plan = loader.batch_size, loader.plan
        device = self.plan.choices.device
        self.cursor = torch.zeros((), dtype=torch.int64, device=device)
        self.places = torch.arange(self.size, device=device)
        self.replayed = Replayed(capture, WARM_UP)

    def begin(self, epoch: int, first: int) -> None:
        """Go to batch number `first` of an epoch."""
        self.plan.draw(self.plan.seed, epoch)
        self.cursor.fill_(first * self.size)

    def next_step(self) -> None:
        """The function that is captured."""
        number = self.cursor // self.size
        batch = self.plan.at(self.cursor + self.places)
        step(self.objective, self.objective, self.optimizer, self.meters, number, *batch)
        self.cursor += self.size

    def rest(self, batches: Iterable[tuple[int, int]]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Images, labels and indices of other batches, which are spans of the epoch's positions."""
        return (self.plan.images(*span) for span in batches)

    def __call__(self) -> None:
        """Take the next step. The key is what a step reads of the host's numbers; PyTorch's SGD has its rate there.
        UserError where it cannot be captured."""
        rates = tuple(group["lr"] for group in self.optimizer.param_groups)
        try:
            self.replayed(self.next_step, (rates, self.objective.host_numbers()))
        except RuntimeError as error:
            if "captur" not in str(error):
                raise
            raise UserError(
                f"the steps of this run cannot be captured in a CUDA graph ({first_cause(error)}); give --eager, or "
                "have the method say host_bound"
            ) from error


def first_cause(error: BaseException) -> str:
    """'method.py:31: ...': the error that others came after, as the end of a capture fails too, and the line that it
    is of, outside PyTorch."""
    while error.__context__ is not None:
        error = error.__context__
    torch_folder = str(Path(torch.__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(torch_folder)]
    place = f"{Path(own[-1].filename).name}:{own[-1].lineno}: " if own else ""
    lines = str(error).splitlines() or [type(error).__name__]
    return place + lines[0]


def why_eager(objective: Objective, loader: TrainLoader) -> str:
    """Why steps cannot be replayed as graphs, in words; '' where they can."""
    if loader.world > 1:
        return "several processes share its batches"
    return loader.image_set.host_bound or objective.host_bound


def train_steps(
    objective: Objective,
    loader: TrainLoader,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    meters: Meters,
    start: int = 0,
    forward: nn.Module | None = None,
    replayed: ReplayedSteps | None = None,
) -> Iterator[int]:
    """Train on an epoch's batches from number `start` on; yields the number of batches done, after each.

    forward: the objective as it is called, where that is another module around it. replayed: takes the steps of whole
    batches; it is of the same objective, loader, optimizer and meters.
    """
    objective.train()
    objective.begin(epoch)
    done = start
    if replayed is None:
        batches = loader.epoch(epoch, start)
    else:
        replayed.begin(epoch, start)
        for _ in range(start, len(loader.image_set) // loader.batch_size):
            replayed()
            meters.images += loader.batch_size
            done += 1
            yield done
        batches = replayed.rest(map(loader.span, range(done, len(loader))))
    for batch in batches:
        step(objective, forward or objective, optimizer, meters, done, *batch)
        meters.images += len(batch[1])
        done += 1
        yield done
