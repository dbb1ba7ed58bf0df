"""AT: Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017 (arXiv 1612.03928)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import stage_shapes, to_smaller
from .method import Batch, Output, Pair


class AT(nn.Module):
    """Squared difference of the L2-normalised attention maps, summed over the stages (equation 2).

    A map is the mean over channels of |F|^p, flattened: (B, C, H, W) -> (B, H W). The paper takes the norm of the
    difference of two maps; the published weight belongs to its square averaged over batch and pixels, and so does this.
    Maps of different sizes are compared at the smaller one. ValueError for p below 1, whose derivative at 0 is
    infinite, and for networks of different numbers of stages.
    """

    def __init__(self, pair: Pair, *, p: float = 2.0):
        super().__init__()
        stage_shapes(pair)  # refuses what forward could not pair up
        if p < 1:
            raise ValueError(f"p: found {p}, expected at least 1")
        self.p = p

    def attention(self, feature: Tensor) -> Tensor:
        return F.normalize(feature.abs().pow(self.p).mean(dim=1).flatten(1))

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        loss = torch.zeros(())
        for maps in zip(student.features[1:-1], teacher.features[1:-1], strict=True):
            attention_s, attention_t = (self.attention(feature) for feature in to_smaller(*maps))
            loss = loss + F.mse_loss(attention_s, attention_t)
        return loss
