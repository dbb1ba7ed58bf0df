"""DIST: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022 (arXiv 2205.10536)."""

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import pearson
from .method import Batch, Output, Pair


class DIST(nn.Module):
    """inter * d(rows) + intra * d(columns) of the softened predictions, d = 1 - Pearson's correlation.

    Rows are the predictions of an image over the classes, columns those for a class over the batch; means over rows and
    over columns. T is --kd_T; both are multiplied by T^2, which is not in the paper's equations but belongs to the
    published weights for CIFAR-100 (inter 2 and intra 2, there called beta and gamma; T 4).
    """

    def __init__(self, pair: Pair, *, inter: float = 2.0, intra: float = 2.0):
        super().__init__()
        self.inter, self.intra, self.T = inter, intra, pair.kd_T

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        p_s, p_t = (F.softmax(output.logits / self.T, dim=1) for output in (student, teacher))
        by_row, by_column = 1 - pearson(p_s, p_t).mean(), 1 - pearson(p_s.T, p_t.T).mean()
        return (self.inter * by_row + self.intra * by_column) * self.T**2
