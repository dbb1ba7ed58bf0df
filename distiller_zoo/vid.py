"""VID: Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019 (arXiv 1904.05835)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import stage_shapes, to_smaller
from .method import Batch, Output, Pair

EPS = 1e-5


class VID(nn.Module):
    """Negative log-likelihood of the teacher's maps under a Gaussian whose mean is regressed from the student's.

    The variance is one number a channel, softplus(a) + 1e-5, trained, and `variance` at first (section 2; the
    additive constant log(2 pi) / 2 is left out). Mean over the elements, summed over the stages, as the published
    weight has it. The regressor is three 1 x 1 convolutions without bias, with ReLU between. Maps of different sizes
    are compared at the smaller one.
    """

    def __init__(self, pair: Pair, *, variance: float = 5.0):
        super().__init__()
        if not variance > EPS:
            raise ValueError(f"variance: found {variance}, expected more than {EPS}")
        self.regressors, self.raw_variances = nn.ModuleList(), nn.ParameterList()
        for (width_s, *_), (width_t, *_) in stage_shapes(pair):
            widths = (width_s, width_t, width_t, width_t)
            layers = [nn.Conv2d(a, b, 1, bias=False) for a, b in zip(widths, widths[1:], strict=False)]
            self.regressors.append(nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]))
            self.raw_variances.append(nn.Parameter(torch.full((width_t,), math.log(math.expm1(variance - EPS)))))

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        loss = torch.zeros(())
        stages = zip(student.features[1:-1], teacher.features[1:-1], self.regressors, self.raw_variances, strict=True)
        for map_s, map_t, regress, raw in stages:
            map_s, map_t = to_smaller(map_s, map_t)
            variance = (F.softplus(raw) + EPS)[:, None, None]
            loss = loss + 0.5 * ((regress(map_s) - map_t).square() / variance + variance.log()).mean()
        return loss
