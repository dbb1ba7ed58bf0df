"""FSP: Yim et al., "A Gift from Knowledge Distillation", CVPR 2017."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .method import Batch, Output, Pair

POOLS: dict[str, Callable] = {"avg": F.adaptive_avg_pool2d, "max": F.adaptive_max_pool2d}


class FSP(nn.Module):
    """Mean squared difference of the FSP matrices, summed over consecutive features; a first stage alone (equation 2).

    The FSP matrix of two features (B, C, H, W) and (B, C', H, W) is F F'^T / (H W), (B, C, C') (equation 1). The larger
    map of the two is pooled to the size of the other: pool "avg" is the form that the published setting belongs to,
    "max" the paper's. From the stem's output to the last stage's, so that student and teacher must have equal widths
    there: ValueError otherwise.

    In the first stage nothing else is trained with it, and its weight is 1; afterwards cross entropy is alone. The
    published scripts name a weight of 50, which acts on nothing: it multiplies the method's loss of the second stage,
    where there is none.
    """

    def __init__(self, pair: Pair, *, pool: str = "avg"):
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"pool: found {pool!r}, expected avg or max")
        self.pool = POOLS[pool]
        widths = [[shape[0] for shape in shapes[:-1]] for shapes in (pair.shapes_s, pair.shapes_t)]
        if len(widths[0]) < 2:
            raise ValueError("relates features between the stem and the pooled vector, of which the student has none")
        if widths[0] != widths[1]:
            raise ValueError(f"needs equal widths, found {widths[0]} for the student and {widths[1]} for the teacher")

    def matrices(self, features: Sequence[Tensor]) -> list[Tensor]:
        matrices = []
        for before, after in zip(features, features[1:], strict=False):
            size = [min(a, b) for a, b in zip(before.shape[2:], after.shape[2:], strict=True)]
            x, y = (f if list(f.shape[2:]) == size else self.pool(f, size) for f in (before, after))
            matrices.append(x.flatten(2) @ y.flatten(2).transpose(1, 2) / (size[0] * size[1]))
        return matrices

    def first_stage(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        pairs = zip(self.matrices(student.features[:-1]), self.matrices(teacher.features[:-1]), strict=True)
        return sum((F.mse_loss(s, t) for s, t in pairs), torch.zeros(()))
