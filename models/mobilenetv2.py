"""MobileNetV2 at half width, for 32 x 32 images.

Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, table 2. The published
weights differ from the paper: ReLU in place of ReLU6, an expansion convolution in the first block as well, stride 1 in
the second stage, and a last convolution that keeps its 1280 channels at half width.
"""

from torch import nn

from .layers import GlobalAveragePool, init_classifier, init_convolutions

WIDTH = 0.5
# expansion factor, output channels at full width, blocks, stride of the first block
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
FEATURE_STAGES = (1, 2, 4, 6)  # counted from 0: the last stage of each resolution


def _scaled(channels):
    return int(channels * WIDTH)


class InvertedResidual(nn.Module):
    """Expand by a 1 x 1 convolution, filter depthwise, project linearly; add the input where the shapes agree."""

    def __init__(self, in_channels, out_channels, expansion, stride):
        super().__init__()
        channels = in_channels * expansion
        self.residual = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x):
        return self.conv(x) + x if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """A stem of stride 2, seven stages of inverted residuals and a 1 x 1 convolution to 1280 channels.

    Input: (B, 3, H, W). Features for 32 x 32 images: stem (B, 16, 16, 16), after four of the stages (B, 12, 16, 16),
    (B, 16, 8, 8), (B, 48, 4, 4), (B, 160, 2, 2), pooled (B, 1280). A stage ends in a linear layer, without a ReLU:
    its pre-activation is its feature.
    """

    def __init__(self, num_classes=100):
        super().__init__()
        channels = _scaled(32)
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        self.blocks = nn.ModuleList()
        for expansion, full_width, blocks, stride in STAGES:
            width = _scaled(full_width)
            first = InvertedResidual(channels, width, expansion, stride)
            others = (InvertedResidual(width, width, expansion, stride=1) for _ in range(blocks - 1))
            self.blocks.append(nn.Sequential(first, *others))
            channels = width
        self.conv2 = nn.Sequential(
            nn.Conv2d(channels, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU(inplace=True)
        )
        self.pool = GlobalAveragePool()
        self.classifier = nn.Sequential(nn.Linear(1280, num_classes))
        init_convolutions(self)
        init_classifier(self.classifier[0])

    def forward(self, x, is_feat=False, preact=False):
        x = self.conv1(x)
        features = [x]
        for i, stage in enumerate(self.blocks):
            x = stage(x)
            if i in FEATURE_STAGES:
                features.append(x)
        pooled = self.pool(self.conv2(x))
        features.append(pooled)
        logits = self.classifier(pooled)
        return (features, logits) if is_feat else logits
