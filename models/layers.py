"""Pieces that several families share."""

import torch
from torch import nn
from torch.nn import functional as F


class ReluStage(nn.Sequential):
    """Residual blocks in a row, each followed by a ReLU.

    A block returns the sum *before* its last ReLU. The ReLU belongs to the stage, which has to show both sides of it.

    Input: (B, C, H, W). Returns the output and the pre-activation of the last block, both (B, C', H', W').
    """

    def forward(self, x):
        for block in self:
            pre_activation = block(x)
            x = F.relu(pre_activation)
        return x, pre_activation


def through_stages(x, stages, preact):
    """(output, features): x, which is a stem's output, through stages that return output and pre-activation.

    features: x, and of each stage the pre-activation if `preact`, else the output.
    """
    features = [x]
    for stage in stages:
        x, pre_activation = stage(x)
        features.append(pre_activation if preact else x)
    return x, features


def channel_shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Interleave the channels of `groups` equal groups, so that the next convolution's groups see all of them.

    The channels, read as a (groups, channels per group) matrix, are transposed: six channels in two groups,
    0 1 2 | 3 4 5, become 0 3 1 4 2 5. (B, C, H, W) in and out.

    Source: Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices",
    CVPR 2018, section 3.1.
    """
    # The one copy is made with the channels last, because a reshape of dimension 1 would undo the channels_last layout.
    return x.movedim(1, -1).unflatten(-1, (groups, -1)).transpose(-1, -2).flatten(-2).movedim(-1, 1)


class GlobalAveragePool(nn.Module):
    """Mean over the pixels, (B, C, H, W) -> (B, C). Every network calls it `pool`, so that a hook can see its input."""

    def forward(self, x):
        return x.mean((2, 3))


def init_convolutions(model: nn.Module) -> None:
    """Draw the weights of every convolution from N(0, 2 / (k^2 * output channels)) and set its bias to zero.

    This is Kaiming normal initialisation in its fan-out form (He et al., "Delving Deep into Rectifiers", ICCV 2015).
    PyTorch's fan-out ignores groups, hence a depthwise convolution counts all its output channels, too.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_classifier(linear: nn.Linear) -> None:
    """Start a classifier near zero: weights from N(0, 0.01^2), bias zero."""
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
