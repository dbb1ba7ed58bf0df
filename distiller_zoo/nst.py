"""NST: Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", arXiv 1707.01219, 2017."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import stage_shapes, to_smaller
from .method import Batch, Output, Pair


def mean_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Mean over the batch and over all pairs of channels of (x_i . y_j)^2; x (B, C, P) and y (B, C', P).

    Since the sum of the squared products is also that of the products of the P x P matrices sum_i x_i x_i^T and
    sum_j y_j y_j^T, the smaller of the two matrices is formed.
    """
    if x.shape[2] < min(x.shape[1], y.shape[1]):
        products = (x.transpose(1, 2) @ x) * (y.transpose(1, 2) @ y)
        return products.sum() / (len(x) * x.shape[1] * y.shape[1])
    return (x @ y.transpose(1, 2)).square().mean()


class NST(nn.Module):
    """Squared maximum mean discrepancy between the channels of student and teacher, summed over the stages (section 4).

    A channel's map is one sample, L2-normalised over its pixels; the kernel is the polynomial one of degree 2 without
    constant. Maps of different sizes are compared at the smaller one. The teacher's own term is kept, so that equal
    maps give 0. ValueError for networks of different numbers of stages.
    """

    def __init__(self, pair: Pair):
        super().__init__()
        stage_shapes(pair)  # refuses what forward could not pair up

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        loss = torch.zeros(())
        for maps in zip(student.features[1:-1], teacher.features[1:-1], strict=True):
            s, t = (F.normalize(feature.flatten(2), dim=2) for feature in to_smaller(*maps))
            loss = loss + mean_kernel(t, t) + mean_kernel(s, s) - 2 * mean_kernel(s, t)
        return loss
