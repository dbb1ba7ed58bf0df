"""FitNet: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (arXiv 1412.6550)."""

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import regressor
from .method import Batch, Output, Pair


class FitNet(nn.Module):
    """Mean squared error between the teacher's hint and a regression of the student's map (equation 3).

    hint: index of the feature, 2 being the second stage's output.

    The regressor is a convolution with batch norm and, as the paper has it, ends in the hint's own non-linearity, a
    ReLU. The paper trains up to the hint first and distils afterwards; the published weight belongs to the form where
    the term is added to cross entropy in a single stage, a mean over all elements, and so does this.
    """

    def __init__(self, pair: Pair, *, hint: int = 2):
        super().__init__()
        self.hint = hint
        if not 0 <= hint < len(pair.shapes_s) - 1 or hint >= len(pair.shapes_t) - 1:
            last = min(len(pair.shapes_s), len(pair.shapes_t)) - 2
            raise ValueError(f"hint: found {hint}, expected 0 to {last}")
        self.regressor = nn.Sequential(*regressor(pair.shapes_s[hint], pair.shapes_t[hint]), nn.ReLU())

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        return F.mse_loss(self.regressor(student.features[self.hint]), teacher.features[self.hint])
