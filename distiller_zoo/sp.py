"""SP: Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019 (arXiv 1907.09682)."""

import torch.nn.functional as F
from torch import Tensor, nn

from .method import Batch, Output, Pair


class SP(nn.Module):
    """Squared Frobenius norm of the difference of the batch's similarity matrices, over B^2 (equation 3).

    The similarity matrix of the last stage's maps, flattened to Q (B, C H W), is Q Q^T with L2-normalised rows. The
    paper allows several layers; the published weight belongs to the last one.
    """

    def __init__(self, pair: Pair):
        super().__init__()

    @staticmethod
    def similarity(feature: Tensor) -> Tensor:
        rows = feature.flatten(1)
        return F.normalize(rows @ rows.T)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        return F.mse_loss(self.similarity(student.features[-2]), self.similarity(teacher.features[-2]))
