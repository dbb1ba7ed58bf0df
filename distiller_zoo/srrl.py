"""SRRL: Yang et al., "Knowledge Distillation via Softmax Regression Representation Learning", ICLR 2021."""

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import BatchNorm
from .method import Batch, Output, Pair


class SRRL(nn.Module):
    """Two mean squared errors: connected pooled feature to the teacher's, and the logits that the teacher's own
    classifier makes of it to the teacher's logits.

    The connector is a 1 x 1 convolution with batch norm and ReLU. The paper leaves the distance of the logits open and
    compares several; the published weight belongs to the squared one. The teacher's classifier is frozen.
    """

    def __init__(self, pair: Pair):
        super().__init__()
        width_s, width_t = pair.shapes_s[-1][0], pair.shapes_t[-1][0]
        self.connector = nn.Sequential(nn.Conv2d(width_s, width_t, 1, bias=False), BatchNorm(width_t), nn.ReLU())
        self.register_buffer("weight", pair.classifier_t.weight.detach().clone(), persistent=False)
        self.register_buffer("bias", pair.classifier_t.bias.detach().clone(), persistent=False)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        connected = self.connector(student.features[-1][:, :, None, None]).flatten(1)
        logits = F.linear(connected, self.weight, self.bias)
        return F.mse_loss(connected, teacher.features[-1]) + F.mse_loss(logits, teacher.logits)
