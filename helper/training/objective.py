"""What the loop minimises, and the one place where autocast is switched on."""

import functools
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Value = TypeVar("Value", Tensor, float)


def has_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for bf16; PyTorch emulates it where there are none."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    # True also for all of AVX-512, of which the older processors emulate it.
    return torch.cpu._is_avx512_bf16_supported() or not torch.cpu._is_avx512_supported()


@functools.cache  # once a process
def warn_of_emulation(device: torch.device) -> None:
    if not has_bf16(device):
        print(
            f"warning: --amp bf16 is emulated on this {device.type}, which has no instructions for it; it takes "
            "several times as long as --amp off",
            flush=True,
        )


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """bf16 autocast for a network's forward when amp is 'bf16'; losses are computed outside it, in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=amp == "bf16")


def python_numbers(module: nn.Module | None) -> tuple:
    """The Python numbers among the attributes of a module and its parts, without those of PyTorch, which count nothing
    there."""
    parts = () if module is None else module.modules()
    own = (part for part in parts if not type(part).__module__.startswith("torch."))
    return tuple(value for part in own for value in vars(part).values() if isinstance(value, int | float))


class Objective(nn.Module):
    """What the loop minimises: the sum over terms of weights[name] * value. This one is cross entropy alone.

    `student` is the deployed network. Parameters outside it are trained and saved with the run, but not deployed.
    A frozen network (a teacher) must be kept in a `Frozen`, in which PyTorch does not search for parameters. `label`
    comes before the epochs that are printed.
    """

    label = ""
    host_bound = ""  # why a step waits for the host, in words, so that it cannot be captured in a CUDA graph
    follows_length = False  # whether weights follow the share of the run's epochs that are done

    def __init__(self, student: nn.Module, weights: Mapping[str, float], amp: str = "off"):
        super().__init__()
        self.student, self.amp = student, amp
        self.weights = {name: weight for name, weight in weights.items() if weight}

    def begin(self, epoch: int) -> None:
        """Called before the first step of an epoch, and again when one is resumed."""

    def host_numbers(self) -> tuple:
        """The Python numbers that a step uses: a CUDA graph of it holds them as they were, until they change."""
        return tuple(self.weights.items())

    def forward(self, images: Tensor, labels: Tensor, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """images (B, 3, H, W), labels (B,), and the images' indices in the training set (B,) -> logits (B, classes),
        and the unweighted terms, float32 scalars.
        """
        with autocast(images.device, self.amp):
            logits = self.student(images)
        return logits, {"ce": F.cross_entropy(logits.float(), labels)}

    def total(self, terms: Mapping[str, Value]) -> Value:
        products = (self.weights[name] * value for name, value in terms.items())
        return sum(products)  # type: ignore[return-value]  # the 0 of no products at all

    def diagnose(self) -> dict[str, float]:
        """Further columns of the log, measured after each epoch; must leave the state of training untouched."""
        return {}

    def figures(self) -> dict[str, Any]:
        """matplotlib Figures of the state at an epoch's end, by tag; must leave the state of training untouched."""
        return {}
