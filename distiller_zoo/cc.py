"""CC: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019 (arXiv 1904.01802)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .method import Batch, Output, Pair


class CC(nn.Module):
    """Agreement of the correlations between the samples of a batch, on the pooled features.

    form "difference": the one that the published weight belongs to. With D (B, feat_dim) the difference of linear
    embeddings of student and teacher, both trained, the mean over consecutive samples of sum_k |D_ik| |D_(i+1)k|. It is
    not the paper's equation.
    form "kernel": the paper's (section 3). Squared difference of the batch's kernel matrices, over B^2; the
    kernel is the Gaussian with parameter `width` on L2-normalised features, by its Taylor polynomial of degree `order`.
    Without embeddings, because trained ones of the teacher would let both collapse.

    A batch of one sample has no correlations: 0. ValueError for another form, and for feat_dim or order below 1.
    """

    def __init__(
        self, pair: Pair, *, form: str = "difference", feat_dim: int = 128, width: float = 0.4, order: int = 2
    ):
        super().__init__()
        if form not in ("difference", "kernel"):
            raise ValueError(f"form: found {form!r}, expected difference or kernel")
        if min(feat_dim, order) < 1:
            raise ValueError(f"feat_dim, order: found {feat_dim}, {order}, expected at least 1")
        self.form, self.width, self.order = form, width, order
        if form == "difference":
            self.embed_s = nn.Linear(pair.shapes_s[-1][0], feat_dim)
            self.embed_t = nn.Linear(pair.shapes_t[-1][0], feat_dim)

    def kernel(self, feature: Tensor) -> Tensor:
        rows = F.normalize(feature)
        cosine = rows @ rows.T
        series = sum((2 * self.width * cosine) ** p / math.factorial(p) for p in range(self.order + 1))
        return math.exp(-2 * self.width) * torch.as_tensor(series)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        pooled_s, pooled_t = student.features[-1], teacher.features[-1]
        if self.form == "kernel":
            return F.mse_loss(self.kernel(pooled_s), self.kernel(pooled_t))
        difference = (self.embed_s(pooled_s) - self.embed_t(pooled_t)).abs()
        return (difference[:-1] * difference[1:]).sum() / max(1, len(difference) - 1)
