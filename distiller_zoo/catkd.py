"""CAT-KD: Guo et al., "Class Attention Transfer Based Knowledge Distillation", CVPR 2023 (arXiv 2304.12777)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import check_positive
from .method import Batch, Output, Pair


class CATKD(nn.Module):
    """Mean squared error of the class activation maps, pooled and normalised.

    A network's class activation maps are what its classifier, as a 1 x 1 convolution, makes of the map before the
    pooling: (B, classes, H, W), whose mean over the pixels is the logits. They are average-pooled to resolution x
    resolution, and each is L2-normalised over its pixels. The student's classifier learns through them as well.
    """

    def __init__(self, pair: Pair, *, resolution: int = 2):
        super().__init__()
        check_positive(resolution=resolution)
        self.resolution = resolution
        self.classifiers = (pair.classifier_s, pair.classifier_t)  # a tuple: their parameters are not this module's

    def attention(self, last_map: Tensor, classifier: nn.Linear) -> Tensor:
        pooled = F.adaptive_avg_pool2d(last_map, self.resolution)  # before the convolution, with which it commutes
        maps = F.conv2d(pooled, classifier.weight[:, :, None, None], classifier.bias)
        return F.normalize(maps.flatten(2), dim=2)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        classifier_s, classifier_t = self.classifiers
        attention_s = self.attention(student.last_map, classifier_s)
        with torch.no_grad():
            attention_t = self.attention(teacher.last_map, classifier_t)
        return F.mse_loss(attention_s, attention_t)
