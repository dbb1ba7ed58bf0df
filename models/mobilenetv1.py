"""MobileNet (version 1) for ImageNet's images of 224 x 224.

Source: Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications",
arXiv:1704.04861, table 1. The names are those of the distillation literature's students (ReviewKD, DIST): `model.0` is
the stem, `model.1` to `model.13` are the blocks.
"""

from torch import nn
from torch.nn import functional as F

from .layers import GlobalAveragePool

# output channels and stride of the blocks
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
FEATURE_BLOCKS = (3, 5, 11, 13)  # counted from 1: the last block of each resolution, from 56 x 56 on


class MobileNetV1(nn.Module):
    """A stem of stride 2 and thirteen blocks of a depthwise 3 x 3 and a 1 x 1 convolution.

    Input: (B, 3, H, W). Features for 224 x 224 images: stem (B, 32, 112, 112), after four of the blocks
    (B, 128, 56, 56), (B, 256, 28, 28), (B, 512, 14, 14), (B, 1024, 7, 7), pooled (B, 1024). The weights start as
    PyTorch draws them.
    """

    def __init__(self, num_classes=1000):
        super().__init__()
        channels = 32
        layers = [nn.Sequential(nn.Conv2d(3, channels, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(channels))]
        for width, stride in BLOCKS:
            layers.append(self._block(channels, width, stride))
            channels = width
        self.model = nn.Sequential(*layers)
        self.pool = GlobalAveragePool()
        self.fc = nn.Linear(channels, num_classes)

    @staticmethod
    def _block(in_channels, out_channels, stride):
        return nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),  # forward applies the last ReLU, to see both sides of it
        )

    def forward(self, x, is_feat=False, preact=False):
        stem, *blocks = self.model
        x = F.relu(stem(x))
        features = [x]
        for number, block in enumerate(blocks, start=1):
            pre_activation = block(x)
            x = F.relu(pre_activation)
            if number in FEATURE_BLOCKS:
                features.append(pre_activation if preact else x)
        pooled = self.pool(x)
        features.append(pooled)
        logits = self.fc(pooled)
        return (features, logits) if is_feat else logits
