"""RKD: Park et al., "Relational Knowledge Distillation", CVPR 2019 (arXiv 1904.05068)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import safe_norm
from .method import Batch, Output, Pair


def distances(points: Tensor) -> Tensor:
    """Euclidean distances (n, n) divided by the mean of the positive ones (section 3.2.1); 0 if there is none."""
    lengths = safe_norm(points[:, None] - points[None])
    positive = lengths > 0
    mean = lengths.sum() / positive.sum().clamp(min=1)
    return lengths / torch.where(mean > 0, mean, 1.0)


def angles(points: Tensor) -> Tensor:
    """Cosines (n, n, n) of the angles at point i between points j and k (section 3.2.2); 0 where two coincide."""
    edges = points[None] - points[:, None]
    lengths = safe_norm(edges)
    directions = edges / torch.where(lengths > 0, lengths, 1.0)[..., None]
    return directions @ directions.transpose(1, 2)


class RKD(nn.Module):
    """distance * L_distance + angle * L_angle on the pooled features (section 3.2).

    Both are means of the smooth L1 loss (Huber's, with threshold 1) over all pairs and all triples, those of equal
    indices included, which add 0: the published weights belong to these means.
    """

    def __init__(self, pair: Pair, *, distance: float = 25.0, angle: float = 50.0):
        super().__init__()
        self.distance, self.angle = distance, angle

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        points_s, points_t = student.features[-1], teacher.features[-1]
        by_distance = F.smooth_l1_loss(distances(points_s), distances(points_t))
        by_angle = F.smooth_l1_loss(angles(points_s), angles(points_t))
        return self.distance * by_distance + self.angle * by_angle
