"""CAT-KD: Guo et al., "Class Attention Transfer Based Knowledge Distillation", CVPR 2023 (arXiv 2304.12777)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import check_positive
from .method import Batch, Output, Pair


class CATKD(nn.Module):
    """Mean squared error of the class activation maps, pooled to few pixels.

    A network's class activation maps are what its classifier, as a 1 x 1 convolution, makes of the map before the
    pooling: (B, classes, H, W), whose mean over the pixels is the logits. They are average-pooled to resolution x
    resolution. The student's classifier learns through them as well.
    form "normalised": each map is L2-normalised over its pixels. The published weights of the pairs of two families
    belong to it.
    form "raw": the pooled maps as they are. The published weights of the six pairs of one family belong to it; with
    normalised maps the term would be about 40 times weaker at the start.
    ValueError for another form, and for a resolution below 1.
    """

    def __init__(self, pair: Pair, *, form: str = "normalised", resolution: int = 2):
        super().__init__()
        check_positive(resolution=resolution)
        if form not in ("normalised", "raw"):
            raise ValueError(f"form: found {form!r}, expected normalised or raw")
        self.form, self.resolution = form, resolution
        self.classifiers = (pair.classifier_s, pair.classifier_t)  # a tuple: their parameters are not this module's

    def attention(self, last_map: Tensor, classifier: nn.Linear) -> Tensor:
        pooled = F.adaptive_avg_pool2d(last_map, self.resolution)  # before the convolution, with which it commutes
        maps = F.conv2d(pooled, classifier.weight[:, :, None, None], classifier.bias)
        maps = maps.flatten(2)
        return F.normalize(maps, dim=2) if self.form == "normalised" else maps

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        classifier_s, classifier_t = self.classifiers
        attention_s = self.attention(student.last_map, classifier_s)
        with torch.no_grad():
            attention_t = self.attention(teacher.last_map, classifier_t)
        return F.mse_loss(attention_s, attention_t)
