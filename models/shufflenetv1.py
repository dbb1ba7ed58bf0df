"""ShuffleNet with three groups, for 32 x 32 images.

Source: Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices", CVPR 2018,
figure 2 and table 1. The published weights differ from the paper: a 1 x 1 stem without max-pool, and a ReLU after the
depthwise convolution as well.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .layers import GlobalAveragePool, ReluStage, channel_shuffle, through_stages

GROUPS = 3
STEM_CHANNELS = 24


class ShuffleUnit(nn.Module):
    """Grouped 1 x 1, shuffle, depthwise 3 x 3 and grouped 1 x 1 convolutions; returns the values before the last ReLU.

    With stride 1 the input is added to the branch. With stride 2 the averaged input is concatenated after the branch,
    which therefore puts out only the channels that are missing. The middle is a quarter as wide as the branch's end.
    """

    def __init__(self, in_channels, out_channels, stride):
        super().__init__()
        self.stride = stride
        branch_channels = out_channels - in_channels if stride == 2 else out_channels
        channels = branch_channels // 4
        # The stem's channels are too few to be grouped (section 3.2 of the paper), which leaves nothing to shuffle.
        self.groups = 1 if in_channels == STEM_CHANNELS else GROUPS
        self.conv1 = nn.Conv2d(in_channels, channels, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, branch_channels, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(branch_channels)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = channel_shuffle(out, self.groups)
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.stride == 2:
            return torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1)
        return out + x


class ShuffleNetV1(nn.Module):
    """A 1 x 1 stem and three stages of 4, 8 and 4 units, the first unit of each with stride 2.

    Input: (B, 3, H, W). Features for 32 x 32 images: stem (B, 24, 32, 32), stages (B, 240, 16, 16), (B, 480, 8, 8),
    (B, 960, 4, 4), pooled (B, 960).
    """

    def __init__(self, num_classes=100):
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM_CHANNELS, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.layer1 = self._stage(STEM_CHANNELS, 240, units=4)
        self.layer2 = self._stage(240, 480, units=8)
        self.layer3 = self._stage(480, 960, units=4)
        self.pool = GlobalAveragePool()
        self.linear = nn.Linear(960, num_classes)

    @staticmethod
    def _stage(in_channels, out_channels, units):
        first = ShuffleUnit(in_channels, out_channels, stride=2)
        return ReluStage(first, *(ShuffleUnit(out_channels, out_channels, stride=1) for _ in range(units - 1)))

    def forward(self, x, is_feat=False, preact=False):
        x = F.relu(self.bn1(self.conv1(x)))
        x, features = through_stages(x, (self.layer1, self.layer2, self.layer3), preact)
        pooled = self.pool(x)
        logits = self.linear(pooled)
        return ([*features, pooled], logits) if is_feat else logits
