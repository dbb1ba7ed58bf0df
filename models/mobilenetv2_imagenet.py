"""MobileNetV2 for ImageNet's images of 224 x 224.

Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, table 2, with torchvision's
names: `features.0` is the stem, `features.1` to `features.17` are the blocks, `features.18` is the last convolution.
"""

from torch import nn

from .layers import GlobalAveragePool, init_classifier, init_convolutions

# expansion factor, output channels, blocks, stride of the first block
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
FEATURE_BLOCKS = (0, 3, 6, 13, 17)  # the stem, and the last block of each resolution, from 56 x 56 on
DROPOUT = 0.2


def convolution(in_channels, out_channels, kernel_size, stride=1, groups=1):
    """A convolution with batch norm and ReLU6."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Expand by a 1 x 1 convolution, filter depthwise, project linearly; add the input where the shapes agree.

    An expansion by 1 is left out.
    """

    def __init__(self, in_channels, out_channels, expansion, stride):
        super().__init__()
        channels = in_channels * expansion
        self.residual = stride == 1 and in_channels == out_channels
        expand = [] if expansion == 1 else [convolution(in_channels, channels, 1)]
        self.conv = nn.Sequential(
            *expand,
            convolution(channels, channels, 3, stride, groups=channels),
            nn.Conv2d(channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x):
        return self.conv(x) + x if self.residual else self.conv(x)


class MobileNetV2ImageNet(nn.Module):
    """A stem of stride 2, seventeen inverted residuals and a 1 x 1 convolution to 1280 channels.

    Input: (B, 3, H, W). Features for 224 x 224 images: stem (B, 32, 112, 112), after four of the blocks
    (B, 24, 56, 56), (B, 32, 28, 28), (B, 96, 14, 14), (B, 320, 7, 7), pooled (B, 1280). A block ends in a linear layer,
    without a ReLU: its pre-activation is its feature. In training a fifth of the pooled values is dropped before the
    classifier.
    """

    def __init__(self, num_classes=1000):
        super().__init__()
        channels = 32
        layers = [convolution(3, channels, 3, stride=2)]
        for expansion, width, blocks, stride in STAGES:
            layers.append(InvertedResidual(channels, width, expansion, stride))
            layers += [InvertedResidual(width, width, expansion, stride=1) for _ in range(blocks - 1)]
            channels = width
        self.features = nn.Sequential(*layers, convolution(channels, 1280, 1))
        self.pool = GlobalAveragePool()
        self.classifier = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(1280, num_classes))
        init_convolutions(self)
        init_classifier(self.classifier[1])

    def forward(self, x, is_feat=False, preact=False):
        features = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in FEATURE_BLOCKS:
                features.append(x)
        pooled = self.pool(x)
        features.append(pooled)
        logits = self.classifier(pooled)
        return (features, logits) if is_feat else logits
