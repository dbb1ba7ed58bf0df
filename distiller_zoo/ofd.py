"""OFD: Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019 (arXiv 1904.01866)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import BatchNorm, stage_shapes, to_smaller
from .method import Batch, Output, Pair


def margins(norm: nn.BatchNorm2d) -> Tensor:
    """E[x | x < 0] for each channel, x normal with the mean and deviation that a batch norm gives it: (C,)."""
    mean, deviation = norm.bias.detach().double(), norm.weight.detach().double().abs().clamp(min=1e-12)
    # Density over probability of x < 0 is sqrt(2 / pi) / erfcx, in which nothing underflows far from the mean.
    margin = mean - deviation * math.sqrt(2 / math.pi) / torch.special.erfcx(mean / deviation / math.sqrt(2))
    return margin.clamp(max=0).to(norm.weight.dtype)


def connector(width_s: int, width_t: int) -> nn.Sequential:
    convolution = nn.Conv2d(width_s, width_t, 1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, BatchNorm(width_t))


class OFD(nn.Module):
    """Partial L2 distance between pre-activations, the teacher's cut at a negative margin (section 3).

    The teacher's value t becomes max(t, m), m being the mean of its channel's negative values, from the batch norm
    before (in a residual network that of the block's last convolution, whose output the shortcut is then added to).
    The student's s goes through a 1 x 1 convolution with batch norm. A position adds (s - t)^2, or 0 where
    s <= t <= 0. Summed over the elements, divided by the batch size, times 2^(i - L + 1) for stage i of L, counted from
    0: the published weight, 1/1000, belongs to this sum. Maps of different sizes are compared at the smaller one: the
    teacher's values are pooled first and then cut at the margin, as the published weight has it; the student's after
    their convolution. ValueError for a teacher whose pre-activations come from no batch norm.
    """

    def __init__(self, pair: Pair):
        super().__init__()
        self.connectors = nn.ModuleList(connector(s[0], t[0]) for s, t in stage_shapes(pair))
        norms = [norm for norm in pair.norms_t if norm is not None]
        if not len(norms) == len(pair.norms_t) == len(self.connectors):
            raise ValueError("needs a teacher whose pre-activations come from a batch norm")
        for i, norm in enumerate(norms):
            self.register_buffer(f"margin{i}", margins(norm)[:, None, None], persistent=False)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        loss = torch.zeros(())
        stages = zip(self.connectors, student.features[1:-1], teacher.features[1:-1], strict=True)
        for i, (connect, s, t) in enumerate(stages):
            s, t = to_smaller(connect(s), t)
            t = torch.maximum(t, self.get_buffer(f"margin{i}"))
            counts = (s > t) | (t > 0)
            loss = loss + (F.mse_loss(s, t, reduction="none") * counts).sum() * 2.0 ** (i - len(self.connectors) + 1)
        return loss / len(batch.labels)
