"""DKD: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022 (arXiv 2203.08679)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .method import Batch, Output, Pair


class DKD(nn.Module):
    """tckd * TCKD + nckd * NCKD, times T^2 (equation 7), averaged over the batch; T is --kd_T.

    TCKD is the divergence of the two-way predictions (target class, all others), NCKD that of the predictions among the
    other classes (equation 5). The published schedule lets the weight rise linearly over 20 epochs. On standardised
    logits (Sun et al., CVPR 2024) both weights are published 9 times as large, which --beta is then.
    """

    def __init__(self, pair: Pair, *, tckd: float = 1.0, nckd: float = 8.0):
        super().__init__()
        self.tckd, self.nckd, self.T = tckd, nckd, pair.kd_T

    def split(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Log probabilities (B, 2) of target or not, and (B, classes) among the others; the target's is very small."""
        softened = logits / self.T
        others = softened.masked_fill(target, torch.finfo(softened.dtype).min / 4)
        log_sums = torch.stack([softened.masked_fill(~target, 0).sum(dim=1), others.logsumexp(dim=1)], dim=1)
        return log_sums.log_softmax(dim=1), others.log_softmax(dim=1)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        target = F.one_hot(batch.labels, student.logits.shape[1]).bool()
        (two_s, others_s), (two_t, others_t) = (self.split(output.logits, target) for output in (student, teacher))
        tckd = F.kl_div(two_s, two_t, reduction="batchmean", log_target=True)
        nckd = F.kl_div(others_s, others_t, reduction="batchmean", log_target=True)
        return (self.tckd * tckd + self.nckd * nckd) * self.T**2
