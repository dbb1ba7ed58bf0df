"""PKT: Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018."""

import torch.nn.functional as F
from torch import Tensor, nn

from .method import Batch, Output, Pair

EPS = 1e-7


class PKT(nn.Module):
    """Divergence of the samples' affinities, mean over B^2 of p_t log(p_t / p_s), on the pooled features.

    Affinities are cosine similarities shifted to [0, 1], each row divided by its sum (section 3; of the paper's kernels
    the one that needs no bandwidth). The paper sums, and leaves each sample's affinity to itself out; the published
    weight belongs to the mean over all pairs. 1e-7 is added within the logarithm.
    """

    def __init__(self, pair: Pair):
        super().__init__()

    @staticmethod
    def affinities(feature: Tensor) -> Tensor:
        rows = F.normalize(feature, eps=EPS)
        shifted = ((rows @ rows.T + 1) / 2).clamp(min=0)  # rounding takes cosines below -1
        return shifted / shifted.sum(dim=1, keepdim=True)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        p_s, p_t = self.affinities(student.features[-1]), self.affinities(teacher.features[-1])
        return (p_t * ((p_t + EPS) / (p_s + EPS)).log()).mean()
