"""KD: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", NIPS workshop 2014 (arXiv 1503.02531)."""

import torch.nn.functional as F
from torch import Tensor, nn


class KD(nn.Module):
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), summed over classes, averaged over the batch.

    The factor T^2 keeps the gradient's size independent of T (Hinton et al., section 2).
    `forward(student, teacher)` takes logits, each (B, classes), and returns a scalar.
    """

    def __init__(self, T: float = 4.0):
        super().__init__()
        self.T = T

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        log_p_s = F.log_softmax(student / self.T, dim=1)
        log_p_t = F.log_softmax(teacher / self.T, dim=1)
        return F.kl_div(log_p_s, log_p_t, reduction="batchmean", log_target=True) * self.T**2
