"""CRD: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020 (arXiv 1910.10699)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import check_positive
from .method import Batch, Output, Pair

EPS = 1e-7


class Embed(nn.Linear):
    """A linear map onto the unit sphere: (B, C) -> (B, feat_dim)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(super().forward(x))


class CRD(nn.Module):
    """Contrastive loss between the embedded pooled features of teacher and student (section 3), both ways.

    Student and teacher are embedded linearly in feat_dim dimensions and normalised. A memory holds one vector for each
    training image and network. An anchor (the student's vector v of image i) is distinguished from nce_k negatives by
    h(v, w) = e / (e + nce_k / N), e = exp(v . w / nce_t) / Z, where w runs over the teacher's memory: image i itself is
    the positive (mode "exact"), the negatives are images of other classes. The loss is -log h(positive) -
    sum log(1 - h(negative)), averaged over the batch; the same with the teacher's vector as the anchor is added. Z is N
    times the mean of the exponentials in the first batch, once for each direction. After a step the memories move
    towards the new vectors: w <- normalised(nce_m w + (1 - nce_m) v).

    Negatives are drawn with replacement, independently, as the paper's noise distribution is. All images' products
    with an anchor come from one matrix product, from which the drawn ones are picked: (B, N) numbers instead of copies
    of (B, nce_k, feat_dim). The memories and Z are buffers: on the device, saved, and resumed.
    """

    def __init__(
        self,
        pair: Pair,
        *,
        feat_dim: int = 128,
        nce_k: int = 16384,
        nce_t: float = 0.07,
        nce_m: float = 0.5,
    ):
        super().__init__()
        check_positive(feat_dim=feat_dim, nce_k=nce_k, nce_t=nce_t)
        self.nce_k, self.nce_t, self.nce_m = nce_k, nce_t, nce_m
        self.embed_s = Embed(pair.shapes_s[-1][0], feat_dim)
        self.embed_t = Embed(pair.shapes_t[-1][0], feat_dim)
        labels = pair.labels
        sizes = torch.bincount(labels)
        # The images sorted by class, so that those of one class are a span that a draw of the others skips.
        self.register_buffer("by_class", labels.argsort(stable=True), persistent=False)
        self.register_buffer("size", sizes, persistent=False)
        self.register_buffer("start", sizes.cumsum(0) - sizes, persistent=False)
        for name in ("memory_s", "memory_t"):  # uniform in a cube, then onto the sphere
            self.register_buffer(name, F.normalize(torch.rand(len(labels), feat_dim) - 0.5).to(labels.device))
        self.register_buffer("Z_s", torch.zeros((), device=labels.device))
        self.register_buffer("Z_t", torch.zeros((), device=labels.device))

    def draw(self, labels: Tensor) -> Tensor:
        """Indices (B, nce_k) of images of other classes than the labels', uniform and independent."""
        start, size = self.start[labels, None], self.size[labels, None]
        uniform = torch.rand(len(labels), self.nce_k, dtype=torch.float64, device=labels.device)
        position = (uniform * (len(self.by_class) - size)).long()
        return self.by_class[torch.where(position < start, position, position + size)]

    def contrast(self, anchor: Tensor, memory: Tensor, Z: Tensor, contrasted: Tensor) -> Tensor:
        """The loss of anchors (B, feat_dim) against memory[contrasted]; contrasted (B, 1 + nce_k), positive first."""
        rows = torch.arange(len(anchor), device=anchor.device)[:, None]
        similar = (anchor @ memory.T)[rows, contrasted]  # on CUDA, gather's backward would not repeat itself
        powers = (similar / self.nce_t).exp()
        with torch.no_grad():
            Z.copy_(torch.where(Z > 0, Z, powers.mean() * len(memory)))
        e, noise = powers / Z.clone(), self.nce_k / len(memory)  # a clone: the next step writes to Z
        positive = e[:, 0] / (e[:, 0] + noise + EPS)
        negative = noise / (e[:, 1:] + noise + EPS)
        return -(positive.log().sum() + negative.log().sum()) / len(anchor)

    @torch.no_grad()
    def remember(self, memory: Tensor, indices: Tensor, vectors: Tensor) -> None:
        memory[indices] = F.normalize(self.nce_m * memory[indices] + (1 - self.nce_m) * vectors)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        v_s, v_t = self.embed_s(student.features[-1]), self.embed_t(teacher.features[-1])
        contrasted = torch.cat([batch.indices[:, None], self.draw(batch.labels)], dim=1)
        memory_s, memory_t = self.memory_s.clone(), self.memory_t.clone()  # backward needs them as they are now
        loss = self.contrast(v_s, memory_t, self.Z_s, contrasted) + self.contrast(v_t, memory_s, self.Z_t, contrasted)
        self.remember(self.memory_s, batch.indices, v_s)
        self.remember(self.memory_t, batch.indices, v_t)
        return loss
