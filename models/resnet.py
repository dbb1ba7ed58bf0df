"""ResNets for 32 x 32 images.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2. Where the shape changes, the
shortcut is a 1 x 1 convolution with batch norm, as the published weights have it (the paper pads with zeros there).
"""

from torch import nn
from torch.nn import functional as F

from .layers import GlobalAveragePool, ReluStage, init_convolutions, through_stages


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut; returns their sum before the ReLU."""

    expansion = 1

    def __init__(self, in_channels, out_channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(out)) + self.downsample(x)


class ResNet(nn.Module):
    """A stem and three stages of (depth - 2) / 6 basic blocks each.

    Args:
        depth: number of weighted layers, 6 n + 2.
        num_classes: number of logits.
        widths: channels of the stem and of the three stages.

    Input: (B, 3, H, W). Features for 32 x 32 images, with widths (w0, w1, w2, w3): stem (B, w0, 32, 32), stages
    (B, w1, 32, 32), (B, w2, 16, 16), (B, w3, 8, 8), pooled (B, w3).
    """

    def __init__(self, depth, num_classes=100, widths=(16, 16, 32, 64)):
        super().__init__()
        if (depth - 2) % 6:
            raise ValueError(f"depth of a CIFAR ResNet must be 6 n + 2, found {depth}")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = self._stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = self._stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = self._stage(widths[2], widths[3], blocks, stride=2)
        self.pool = GlobalAveragePool()
        self.fc = nn.Linear(widths[3], num_classes)
        init_convolutions(self)

    @staticmethod
    def _stage(in_channels, out_channels, blocks, stride):
        first = BasicBlock(in_channels, out_channels, stride)
        return ReluStage(first, *(BasicBlock(out_channels, out_channels, stride=1) for _ in range(blocks - 1)))

    def forward(self, x, is_feat=False, preact=False):
        x = F.relu(self.bn1(self.conv1(x)))
        x, features = through_stages(x, (self.layer1, self.layer2, self.layer3), preact)
        pooled = self.pool(x)
        logits = self.fc(pooled)
        return ([*features, pooled], logits) if is_feat else logits
