"""SemCKD: Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021 (arXiv 2012.03236)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import bottleneck, check_positive, to_smaller
from .method import Batch, Output, Pair


def embedding(width_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))


class SemCKD(nn.Module):
    """Every stage of the student imitates all of the teacher's, weighted by attention.

    For image i, stage l of the student and m of the teacher: a_ilm = softmax over m of q_il . k_im, with queries and
    keys from the rows of the stages' similarity matrices F F^T (B, B), as they are, through two linear layers with a
    ReLU between, onto the unit sphere. The loss is the mean over images and student stages of sum_m a_ilm * mse_ilm;
    mse_ilm is the mean squared error between the teacher's map and the student's, both at the smaller size, after a
    projection of the student's: three convolutions (1 x 1, 3 x 3, 1 x 1), twice as wide inside as the teacher's map,
    with batch norm and ReLU between and nothing after the last. The published weight belongs to this form.

    The rows of similarities of a short batch are filled with zeros, as if the missing images were similar to none.
    `reduction`: the embedding has batch size / reduction dimensions, at least one. ValueError for a reduction of 0.
    """

    def __init__(self, pair: Pair, *, reduction: int = 4):
        super().__init__()
        check_positive(reduction=reduction)
        self.batch_size = pair.batch_size
        shapes_s, shapes_t = pair.shapes_s[1:-1], pair.shapes_t[1:-1]
        width = max(1, pair.batch_size // reduction)
        self.queries = nn.ModuleList(embedding(pair.batch_size, width) for _ in shapes_s)
        self.keys = nn.ModuleList(embedding(pair.batch_size, width) for _ in shapes_t)
        self.projections = nn.ModuleList(
            nn.ModuleList(bottleneck(s[0], 2 * t[0], t[0])[:-1] for t in shapes_t)  # no batch norm at the end
            for s in shapes_s
        )

    def embed(self, feature: Tensor, layers: nn.Module) -> Tensor:
        rows = feature.flatten(1)
        return F.normalize(layers(F.pad(rows @ rows.T, (0, self.batch_size - len(rows)))))

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        maps_s, maps_t = student.features[1:-1], teacher.features[1:-1]
        keys = torch.stack([self.embed(t, layers) for t, layers in zip(maps_t, self.keys, strict=True)], dim=1)
        loss = torch.zeros(())
        for i, (s, layers) in enumerate(zip(maps_s, self.queries, strict=True)):
            attention = (keys @ self.embed(s, layers)[:, :, None]).squeeze(2).softmax(dim=1)
            errors = []
            for j, t in enumerate(maps_t):
                small_s, small_t = to_smaller(s, t)
                project = self.projections.get_submodule(f"{i}.{j}")
                errors.append((project(small_s) - small_t).square().flatten(1).mean(dim=1))
            loss = loss + (attention * torch.stack(errors, dim=1)).sum(dim=1).mean()
        return loss / len(maps_s)
