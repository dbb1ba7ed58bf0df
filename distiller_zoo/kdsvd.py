"""KD-SVD: Lee, Kim, Song, "Self-supervised Knowledge Distillation Using Singular Value Decomposition", ECCV 2018."""

import itertools

import torch
from torch import Tensor, nn

from .blocks import safe_norm, stage_shapes, to_smaller
from .method import Batch, Output, Pair

ORDER = 12


def principal_vector(feature: Tensor) -> Tensor:
    """The first right singular vector over the pixels, (B, H W), of each map (B, C, H, W); 0 for a map of zeros.

    With A = F F^T (C, C), u its first eigenvector, it is F^T u normalised. The eigenvectors are found without gradient;
    u's first derivative is that of perturbation theory, sum_j u_j (u_j . dA u) / (l - l_j), in which, unlike in the
    derivative of a full decomposition, equal eigenvalues among the others do no harm; one that rounding cannot tell
    from the first is left out. The sign is that which makes the sum not negative.
    """
    rows = feature.flatten(2)
    gram = rows @ rows.transpose(1, 2)
    with torch.no_grad():
        values, vectors = torch.linalg.eigh(gram)
        first, others = vectors[:, :, -1:], vectors[:, :, :-1]
        gaps = values[:, -1:] - values[:, :-1]
        rounding = max(rows.shape[1:]) * torch.finfo(gaps.dtype).eps * values[:, -1:]
        inverse = torch.where(gaps > rounding, 1 / gaps, 0.0)
    change = (gram - gram.detach()) @ first
    first = first + others @ (inverse[:, :, None] * (others.transpose(1, 2) @ change))
    vector = (rows.transpose(1, 2) @ first).squeeze(2)
    norm = safe_norm(vector)[:, None]
    vector = vector / torch.where(norm == 0, 1.0, norm)
    return torch.where(vector.sum(dim=1, keepdim=True) < 0, -vector, vector)


def factors(vector: Tensor) -> Tensor:
    """(B, n) -> (B, n, ORDER), such that factors(v) factors(w)^T is exp(-(v_i - w_j)^2 / 8), to 1e-16.

    exp(-(v - w)^2 / 8) = exp(-v^2 / 8) exp(-w^2 / 8) exp(v w / 4), the last by its series, which converges at once
    because the entries of unit vectors are at most 1.
    """
    orders = torch.arange(ORDER, dtype=vector.dtype, device=vector.device)
    powers = (vector / 2)[:, :, None] ** orders / torch.lgamma(orders + 1).mul(0.5).exp()
    return (-vector.square() / 8).exp()[:, :, None] * powers


class KDSVD(nn.Module):
    """Squared difference of the relations between the principal vectors of consecutive stages (section 3).

    A stage's maps (C, H W) are replaced by the first singular vector over the pixels; the relation of two stages is
    exp(-(v_i - w_j)^2 / 8) for every pixel i of the one and j of the other. Squared differences of the relations are
    summed over the pixels and the stages, and averaged over the batch. One vector (k = 1) and its sign, which the
    decomposition leaves open, fixed by a sum that is not negative. The vectors over the pixels are taken, not those
    over the channels, because they compare networks of any width; maps of different sizes are compared at the smaller.
    Published implementations take other vectors, and differ in which, so that the weight of 1 is assumed here.

    With relations V W^T of few factors, the student's minus the teacher's is [V_s - V_t, V_t] [W_s, W_s - W_t]^T, whose
    squared norm needs no matrix of pixels by pixels. ValueError where one network has more stages, and below two.
    """

    def __init__(self, pair: Pair):
        super().__init__()
        stages = stage_shapes(pair)
        if len(stages) < 2:
            raise ValueError(f"relates consecutive stages, found {len(stages)}")

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        maps = [to_smaller(s, t) for s, t in zip(student.features[1:-1], teacher.features[1:-1], strict=True)]
        stages = [[factors(principal_vector(each)) for each in pair] for pair in maps]
        loss = torch.zeros(())
        for (v_s, v_t), (w_s, w_t) in itertools.pairwise(stages):
            left, right = torch.cat([v_s - v_t, v_t], dim=2), torch.cat([w_s, w_s - w_t], dim=2)
            loss = loss + ((left.transpose(1, 2) @ left) * (right.transpose(1, 2) @ right)).sum()
        return loss / len(batch.labels)
