"""CRCD: Zhu et al., "Complementary Relation Contrastive Distillation", CVPR 2021 (arXiv 2103.16367)."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .crd import CRD, EPS
from .method import Batch, Output, Pair

SMALLEST = 1e-6  # of a squared distance, in units of the anchors' variance: below it, float32 knows no direction
TINY = 1e-30  # for anchors that are equal
GRADIENT_SCALE = 10.0


class Relations(CRD):
    """CRD between relations: an image's vector is replaced by its direction from an anchor.

    Anchors are the batch's entries in the other network's memory. For image i, anchor a and the contrasted entries w_k
    of that memory, k = 0 being i itself: h = exp(r . q_k / nce_t) / Z, with r the direction from anchor a to the
    embedded image i, and q_k that from a to w_k, which has no gradient, and is 0 where w_k is the anchor itself. The
    loss is CRD's, averaged over all i and all a other than i.
    """

    def contrast(self, vectors: Tensor, memory: Tensor, Z: Tensor, contrasted: Tensor) -> Tensor:
        """The loss of vectors (B, feat_dim) against memory[contrasted]; contrasted (B, 1 + nce_k), i itself first."""
        anchors, others = memory[contrasted[:, 0]], memory[contrasted]
        centre = anchors.mean(dim=0)  # taken off, as it changes no direction, but may be most of an embedded gradient
        vectors, anchors, others = vectors - centre, anchors - centre, others - centre
        relation = F.normalize(vectors[:, None] - anchors, dim=2)  # (B, B, feat_dim), of image i and anchor a
        # r . (w - a) over |w - a|, from inner products: no array has both all candidates and all coordinates.
        inner = relation @ others.mT - (relation * anchors).sum(dim=2, keepdim=True)  # (B, B, 1 + nce_k)
        crossed = anchors @ others.mT
        squared = others.square().sum(dim=2)[:, None] - 2 * crossed + anchors.square().sum(dim=1)[:, None]
        least = SMALLEST * anchors.square().sum(dim=1).mean()
        powers = (inner / torch.maximum(squared, least + TINY).sqrt() / self.nce_t).exp()
        counts = ~torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)  # i's direction to itself is none
        pairs = max(1, len(vectors) * (len(vectors) - 1))
        with torch.no_grad():
            first = (powers * counts[:, :, None]).sum() / (pairs * powers.shape[2]) * len(memory)
            Z.copy_(torch.where(Z > 0, Z, first))
        e, noise = powers / torch.where(Z > 0, Z, 1.0), self.nce_k / len(memory)
        positive = e[:, :, 0] / (e[:, :, 0] + noise + EPS)
        negative = noise / (e[:, :, 1:] + noise + EPS)
        return -((positive.log() + negative.log().sum(dim=2)) * counts).sum() / pairs


class CRCD(nn.Module):
    """Relations between images by contrast, and the gradient of CE at the pooled vectors.

    The relations are those of `Relations`, of student against teacher's memory and of teacher against student's. The
    gradient of CE at a pooled vector is (softmax(z) - onehot(y)) W / B in closed form, W being the classifier's matrix,
    and the student's keeps its graph.
    gradient "cosine": 10 * (1 - their mean cosine), for pooled vectors of equal width; ValueError for others.
    gradient "contrast": a second `Relations`, with embeddings and memories of its own, between the gradients.
    gradient "none": without this part.

    The only public code is not the authors', and incomplete by its own account. What is taken from it is therefore
    assumed: the weights 1 (CE), 0.9 (KD) and 1; the options' defaults; the 250 epochs, of which the last 10 have CE
    alone (here: the same share of a run). What differs from it: the teacher is in eval mode, as for all methods; an
    entry has no direction from itself (there, that of 1e-6 in each coordinate), so an image is no anchor of its own;
    the gradient term is added, with weight 1, where that code multiplies it by KD, and it ends with the others. The
    paper's relations come from a network, of which nothing is public. No weights for ImageNet are known.
    """

    def __init__(
        self,
        pair: Pair,
        *,
        feat_dim: int = 128,
        nce_k: int = 500,
        nce_t: float = 0.05,
        nce_m: float = 0.5,
        gradient: str = "cosine",
    ):
        super().__init__()
        if gradient not in ("cosine", "contrast", "none"):
            raise ValueError(f"gradient: found {gradient!r}, expected cosine, contrast or none")
        (width_s,), (width_t,) = pair.shapes_s[-1], pair.shapes_t[-1]
        if gradient == "cosine" and width_s != width_t:
            raise ValueError(
                f"gradient=cosine needs equal widths of the pooled vectors, found {width_s} for the student and "
                f"{width_t} for the teacher; gradient=contrast takes any"
            )
        self.gradient = gradient
        self.classifiers = (pair.classifier_s, pair.classifier_t)  # a tuple: their parameters are not this module's
        relations = partial(Relations, pair, feat_dim=feat_dim, nce_k=nce_k, nce_t=nce_t, nce_m=nce_m)
        self.relations = relations()
        self.of_gradients = None
        if gradient == "contrast":
            self.of_gradients = relations()

    def gradients(self, student: Output, teacher: Output, batch: Batch) -> list[Tensor]:
        """Gradients of the batch's mean CE at the pooled vectors, (B, width) each; the teacher's has no graph."""
        found = []
        for output, classifier in zip((student, teacher), self.classifiers, strict=True):
            error = F.softmax(output.logits, dim=1) - F.one_hot(batch.labels, output.logits.shape[1])
            found.append(error @ classifier.weight / len(error))
        return [found[0], found[1].detach()]

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        loss = self.relations(student, teacher, batch)
        if self.gradient == "none":
            return loss
        g_s, g_t = self.gradients(student, teacher, batch)
        if self.of_gradients is None:
            return loss + GRADIENT_SCALE * (1 - F.cosine_similarity(g_s, g_t, dim=1).mean())
        outputs = (output._replace(features=[g]) for output, g in ((student, g_s), (teacher, g_t)))
        return loss + self.of_gradients(*outputs, batch)
