"""ShuffleNetV2 (1x), for 32 x 32 images.

Source: Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", ECCV 2018, figure 3 (c)
and (d), and table 5. The published weights differ from the paper: a 1 x 1 stem without max-pool.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .layers import GlobalAveragePool, channel_shuffle, through_stages


class BasicUnit(nn.Module):
    """The first half of the channels passes by, the second goes through three convolutions; their concatenation.

    The last ReLU and the shuffle are the stage's. That ReLU leaves the first half as it is: it came through one before.
    """

    def __init__(self, channels):
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x):
        passed, out = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(out)))
        out = self.bn2(self.conv2(out))
        out = self.bn3(self.conv3(out))
        return torch.cat([passed, out], dim=1)


class DownUnit(nn.Module):
    """Two branches of stride 2, each with half of the output channels; their concatenation before the last ReLU."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        half = out_channels // 2
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, stride=2, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, stride=2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x):
        left = self.bn1(self.conv1(x))
        left = self.bn2(self.conv2(left))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn4(self.conv4(right))
        right = self.bn5(self.conv5(right))
        return torch.cat([left, right], dim=1)


class ShuffleStage(nn.Sequential):
    """Units in a row, each followed by a ReLU and a shuffle of its two halves.

    Returns the last unit's output, and its pre-activation: the concatenation before ReLU and shuffle.
    """

    def forward(self, x):
        for unit in self:
            pre_activation = unit(x)
            x = channel_shuffle(F.relu(pre_activation), groups=2)
        return x, pre_activation


class ShuffleNetV2(nn.Module):
    """A 1 x 1 stem, three stages of one down unit and 3, 7 and 3 basic units, and a 1 x 1 convolution to 1024 channels.

    Input: (B, 3, H, W). Features for 32 x 32 images: stem (B, 24, 32, 32), stages (B, 116, 16, 16), (B, 232, 8, 8),
    (B, 464, 4, 4), pooled (B, 1024).
    """

    def __init__(self, num_classes=100):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.layer1 = self._stage(24, 116, basic_units=3)
        self.layer2 = self._stage(116, 232, basic_units=7)
        self.layer3 = self._stage(232, 464, basic_units=3)
        self.conv2 = nn.Conv2d(464, 1024, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1024)
        self.pool = GlobalAveragePool()
        self.linear = nn.Linear(1024, num_classes)

    @staticmethod
    def _stage(in_channels, out_channels, basic_units):
        return ShuffleStage(DownUnit(in_channels, out_channels), *(BasicUnit(out_channels) for _ in range(basic_units)))

    def forward(self, x, is_feat=False, preact=False):
        x = F.relu(self.bn1(self.conv1(x)))
        x, features = through_stages(x, (self.layer1, self.layer2, self.layer3), preact)
        pooled = self.pool(F.relu(self.bn2(self.conv2(x))))
        logits = self.linear(pooled)
        return ([*features, pooled], logits) if is_feat else logits
