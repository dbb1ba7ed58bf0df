"""Pieces that several methods share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .method import Pair


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that also takes a batch of one value a channel, which has no variance: by the running statistics."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


def check_positive(**options: float) -> None:
    """ValueError for an option that is not above 0."""
    for name, value in options.items():
        if not value > 0:
            raise ValueError(f"{name}: found {value}, expected more than 0")


def stage_shapes(pair: Pair) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """[(student's, teacher's)] shapes of the stages' outputs; ValueError where one network has more stages."""
    shapes_s, shapes_t = pair.shapes_s[1:-1], pair.shapes_t[1:-1]
    if len(shapes_s) != len(shapes_t):
        raise ValueError(
            f"needs as many stages in both networks, found {len(shapes_s)} for the student and {len(shapes_t)} for the "
            "teacher"
        )
    return list(zip(shapes_s, shapes_t, strict=True))


def to_smaller(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps (B, C, H, W) at the smaller of their sizes; the larger one is average-pooled."""
    height, width = (min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True))
    small_s, small_t = (
        x if x.shape[2:] == (height, width) else F.adaptive_avg_pool2d(x, (height, width)) for x in (student, teacher)
    )
    return small_s, small_t


def regressor(shape_s: tuple[int, ...], shape_t: tuple[int, ...]) -> nn.Sequential:
    """A convolution and a batch norm from maps of shape_s to maps of shape_t, both (C, H, W).

    1 x 1 between equal sizes, strided 3 x 3 to a smaller size, transposed to a larger one. ValueError where neither
    size is a multiple of the other.
    """
    (width_s, size_s, _), (width_t, size_t, _) = shape_s, shape_t
    down, up = size_s // size_t, size_t // size_s
    if size_s == size_t:
        convolution: nn.Module = nn.Conv2d(width_s, width_t, 1, bias=False)
    elif size_s == down * size_t:
        convolution = nn.Conv2d(width_s, width_t, 3, stride=down, padding=1, bias=False)
    elif size_t == up * size_s:
        kernel = up + 2 * (up // 2)
        convolution = nn.ConvTranspose2d(width_s, width_t, kernel, stride=up, padding=up // 2, bias=False)
    else:
        raise ValueError(f"no regressor from {size_s} x {size_s} to {size_t} x {size_t} pixels")
    return nn.Sequential(convolution, BatchNorm(width_t))


def bottleneck(width_in: int, width: int, width_out: int) -> nn.Sequential:
    """1 x 1, 3 x 3 and 1 x 1 convolutions, each followed by batch norm and, but for the last, by ReLU; size stays."""
    return nn.Sequential(
        *(nn.Conv2d(width_in, width, 1, bias=False), BatchNorm(width), nn.ReLU()),
        *(nn.Conv2d(width, width, 3, padding=1, bias=False), BatchNorm(width), nn.ReLU()),
        *(nn.Conv2d(width, width_out, 1, bias=False), BatchNorm(width_out)),
    )


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation along the last dimension: (..., n), (..., n) -> (...); 0 where one of them is constant."""
    a, b = (x - x.mean(dim=-1, keepdim=True) for x in (a, b))
    return F.cosine_similarity(a, b, dim=-1)


def safe_norm(x: Tensor, dim: int = -1) -> Tensor:
    """Euclidean norm, with gradient 0 (and not nan) at 0."""
    squared = x.square().sum(dim)
    zero = squared == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())
