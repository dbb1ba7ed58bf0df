"""ReviewKD: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021 (arXiv 2104.09044)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import BatchNorm, check_positive, stage_shapes
from .method import Batch, Output, Pair

LEVELS = (4, 2, 1)


def resize(x: Tensor, size: int) -> Tensor:
    return x if x.shape[2] == size else F.interpolate(x, size=(size, size), mode="nearest")


class AttentionFusion(nn.Module):
    """ABF: fuses a student's stage with the fused map of the deeper one, by an attention map for each.

    forward(x (B, C, H, W), deeper (B, width, h, w) or None) returns the fused map (B, width, H, W), for the next
    shallower stage, and what is compared with the teacher: (B, width_t, size_t, size_t).
    """

    def __init__(self, width_s: int, width: int, shape_t: tuple[int, ...], fuse: bool):
        super().__init__()
        self.size_t = shape_t[1]
        reduce = nn.Conv2d(width_s, width, 1, bias=False)
        expand = nn.Conv2d(width, shape_t[0], 3, padding=1, bias=False)
        for convolution in (reduce, expand):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.reduce = nn.Sequential(reduce, BatchNorm(width))
        self.expand = nn.Sequential(expand, BatchNorm(shape_t[0]))
        self.attention = nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid()) if fuse else None

    def forward(self, x: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        x = self.reduce(x)
        if self.attention is not None and deeper is not None:
            deeper = resize(deeper, x.shape[2])
            weights = self.attention(torch.cat([x, deeper], dim=1))
            x = x * weights[:, :1] + deeper * weights[:, 1:]
        return x, self.expand(resize(x, self.size_t))


def hierarchical_context_loss(s: Tensor, t: Tensor) -> Tensor:
    """HCL: mean squared errors of the maps and of their averages on 4 x 4, 2 x 2 and 1 x 1 cells, weighted
    1, 1/2, 1/4, 1/8, as far as the cells are fewer than the pixels, over the sum of the weights. (B, C, H, W) each.
    """
    loss, weight, total = F.mse_loss(s, t), 1.0, 1.0
    for cells in LEVELS:
        if cells < s.shape[2]:
            weight /= 2
            total += weight
            loss = loss + weight * F.mse_loss(F.adaptive_avg_pool2d(s, cells), F.adaptive_avg_pool2d(t, cells))
    return loss / total


class ReviewKD(nn.Module):
    """Each level of the teacher is compared with a fusion of this and all deeper levels of the student.

    Levels are the stages and the pooled vector, as a map of one pixel; from the deepest on, a fused map is handed to
    the shallower level. The fused maps have as many channels as the student's pooled vector, `width` at most. The
    published weights belong to this form, with a warm-up of 20 epochs: the student's maps after the ReLU, the teacher's
    before it; those for ImageNet to a warm-up of one epoch and both before it. ValueError for networks that differ in
    their number of stages, and for a width below 1.
    """

    def __init__(self, pair: Pair, *, width: int = 512):
        super().__init__()
        check_positive(width=width)
        (width_s,), (width_t,) = pair.shapes_s[-1], pair.shapes_t[-1]
        levels = [*stage_shapes(pair), ((width_s, 1, 1), (width_t, 1, 1))]
        self.fusions = nn.ModuleList(
            AttentionFusion(s[0], min(width, width_s), t, fuse=i < len(levels) - 1) for i, (s, t) in enumerate(levels)
        )

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        levels = list(zip(self.fusions, student.features[1:], teacher.features[1:], strict=True))
        loss, fused = torch.zeros(()), None
        for fuse, s, t in reversed(levels):
            s, t = (x[:, :, None, None] if x.ndim == 2 else x for x in (s, t))
            fused, compared = fuse(s, fused)
            loss = loss + hierarchical_context_loss(compared, t)
        return loss
