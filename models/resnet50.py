"""ResNet-50 for 32 x 32 images.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1, with a 3 x 3 stem of stride 1 and
no max-pool. The stride of a bottleneck lies on its 3 x 3 convolution.
"""

from torch import nn
from torch.nn import functional as F

from .layers import GlobalAveragePool, ReluStage, init_convolutions, through_stages


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions (four times as wide) beside a shortcut; the sum before the ReLU."""

    expansion = 4
    shortcut_name = "shortcut"

    def __init__(self, in_channels, channels, stride):
        super().__init__()
        out_channels = self.expansion * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        shortcut = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        self.add_module(self.shortcut_name, shortcut)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out)) + getattr(self, self.shortcut_name)(x)


class ResNet50(nn.Module):
    """A stem and four stages of 3, 4, 6 and 3 bottlenecks.

    Input: (B, 3, H, W). Features for 32 x 32 images: stem (B, 64, 32, 32), stages (B, 256, 32, 32), (B, 512, 16, 16),
    (B, 1024, 8, 8), (B, 2048, 4, 4), pooled (B, 2048).
    """

    def __init__(self, num_classes=100):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = self._stage(64, 64, blocks=3, stride=1)
        self.layer2 = self._stage(256, 128, blocks=4, stride=2)
        self.layer3 = self._stage(512, 256, blocks=6, stride=2)
        self.layer4 = self._stage(1024, 512, blocks=3, stride=2)
        self.pool = GlobalAveragePool()
        self.linear = nn.Linear(2048, num_classes)
        init_convolutions(self)

    @staticmethod
    def _stage(in_channels, channels, blocks, stride):
        first = Bottleneck(in_channels, channels, stride)
        out_channels = Bottleneck.expansion * channels
        return ReluStage(first, *(Bottleneck(out_channels, channels, stride=1) for _ in range(blocks - 1)))

    def forward(self, x, is_feat=False, preact=False):
        x = F.relu(self.bn1(self.conv1(x)))
        x, features = through_stages(x, (self.layer1, self.layer2, self.layer3, self.layer4), preact)
        pooled = self.pool(x)
        logits = self.linear(pooled)
        return ([*features, pooled], logits) if is_feat else logits
