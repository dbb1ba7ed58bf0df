"""SimKD: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022 (arXiv 2203.14001)."""

import copy

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import bottleneck
from .method import Batch, Output, Pair, classifier, forward


class Pool(nn.Module):
    """Mean over the pixels: (B, C, H, W) -> (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class SimKDStudent(nn.Module):
    """The student that SimKD trains and deploys: its body, a projector, and the teacher's classifier, not trained.

    Called as every network of the project is; the pooled vector is that of the projected map, (B, teacher's width). The
    projector is three convolutions (1 x 1, 3 x 3, 1 x 1) with batch norm and ReLU, half as wide inside as at its end.
    The body's map is pooled to the teacher's size first where it is larger.
    """

    def __init__(self, student: nn.Module, pair: Pair):
        super().__init__()
        width_t, size_t, _ = pair.map_t
        self.body = student
        name, _ = classifier(student)
        student.set_submodule(name, nn.Identity())
        self.size = min(size_t, pair.map_s[1])
        self.projector = nn.Sequential(*bottleneck(pair.map_s[0], width_t // 2, width_t), nn.ReLU())
        self.pool = Pool()
        self.classifier = copy.deepcopy(pair.classifier_t).requires_grad_(False)

    def forward(self, x: Tensor, is_feat: bool = False, preact: bool = False):
        features, _, last_map = forward(self.body, x, preact, last_map=True)
        pooled = self.pool(self.projector(F.adaptive_avg_pool2d(last_map, self.size)))
        logits = self.classifier(pooled)
        return ([*features[:-1], pooled], logits) if is_feat else logits


class SimKD(nn.Module):
    """Mean squared error between the student's projected map and the teacher's last one, nothing else.

    The maps are those whose mean over the pixels the classifiers read, behind the network's last convolution and ReLU;
    the published weight of 1 belongs to this mean. The teacher's is pooled to the student's size where it is larger.
    In MobileNetV2 and ShuffleNetV2 this map is that of the 1 x 1 convolution behind the last stage (1280 and 1024
    channels), and the projector is as large as that asks for: the parameters of these students are not as many as in
    the paper's tables.
    """

    def __init__(self, pair: Pair):
        super().__init__()

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        height, width = student.last_map.shape[2:]
        return F.mse_loss(student.last_map, F.adaptive_avg_pool2d(teacher.last_map, (height, width)))
