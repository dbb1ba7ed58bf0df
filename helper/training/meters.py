"""Sums over an epoch, kept on the device: a step updates them without waiting for a number."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import distributed
from ..errors import RunStopped


class Meters:
    """Images, correct predictions and terms of an epoch; and the first step whose loss was not finite."""

    def __init__(self, names: Sequence[str], device: torch.device):
        self.names = list(names)
        self.images = 0
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.sums = torch.zeros(len(names), dtype=torch.float64, device=device)
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self.bad_terms = torch.zeros(len(names), device=device)

    def reset(self) -> None:
        """Begin another epoch. The tensors stay where they are in memory, here and in all that follows."""
        self.images = 0
        self.correct.zero_(), self.sums.zero_(), self.bad_step.fill_(-1), self.bad_terms.zero_()

    @torch.no_grad()
    def update(
        self, step: int | Tensor, loss: Tensor, terms: dict[str, Tensor], logits: Tensor, labels: Tensor
    ) -> None:
        """Add a step, number `step` of the epoch from 0 on. `images`, which the host counts, is left to the caller."""
        values = torch.stack([terms[name] for name in self.names])
        self.correct += (logits.argmax(1) == labels).sum()
        self.sums += values.double() * len(labels)
        first = ~torch.isfinite(loss) & (self.bad_step < 0)
        self.bad_terms.copy_(torch.where(first, values, self.bad_terms))
        self.bad_step.copy_(torch.where(first, step, self.bad_step))

    def add(self, state: dict[str, Any]) -> None:
        """Add the sums of other meters of the same terms, as their `state_dict` gives them."""
        self.images += state["images"]
        self.correct += state["correct"].to(self.correct.device)
        self.sums += state["sums"].to(self.sums.device)

    def over_processes(self) -> "Meters":
        """The sums over all processes."""
        if distributed.world() == 1:
            return self
        total = Meters(self.names, self.sums.device)
        for state in self.states():
            total.add(state)
        return total

    def states(self) -> list[dict[str, Any]]:
        """`state_dict` of every process's meters, on the CPU."""
        own = {key: value.cpu() if isinstance(value, Tensor) else value for key, value in self.state_dict().items()}
        return distributed.all_states(own)

    def check(self, epoch: int, kept: str) -> None:
        """Raise RunStopped if the loss of some step was not finite. Waits for the device. kept: what is left."""
        if (step := int(self.bad_step)) >= 0:
            values = zip(self.names, self.bad_terms.tolist(), strict=True)
            terms = ", ".join(f"{name} {value:g}" for name, value in values)
            raise RunStopped(
                f"the loss became non-finite at epoch {epoch}, step {step + 1} ({terms}); {kept}; a lower --lr or a "
                "smaller weight may help"
            )

    def means(self) -> dict[str, float]:
        return {name: value / self.images for name, value in zip(self.names, self.sums.tolist(), strict=True)}

    @property
    def accuracy(self) -> float:
        """Of the training images, in percent."""
        return 100 * self.correct.item() / self.images

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "names"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError for the state of meters of other terms."""
        own_state = self.state_dict()
        for name, own in own_state.items():
            value = state.get(name)
            if not isinstance(value, type(own)):
                raise ValueError(f"its meters have {name} {value}")
            if isinstance(own, Tensor) and value.shape != own.shape:
                raise ValueError(f"its meters have {name} of another shape")
        for name, own in own_state.items():
            if isinstance(own, Tensor):
                own.copy_(state[name])
            else:
                setattr(self, name, state[name])
