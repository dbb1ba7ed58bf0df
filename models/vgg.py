"""VGG with batch norm, for 32 x 32 and 64 x 64 images.

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, table 1
(A, B, D and E are VGG11, 13, 16 and 19), with batch norm after each convolution and one linear layer in place of three.
VGG8 has one convolution a stage.
"""

from torch import fx, nn
from torch.nn import functional as F

from .layers import GlobalAveragePool, init_classifier, init_convolutions

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


@fx.wrap  # torch.fx cannot trace a choice by size, so it keeps the call as it stands
def pool_large_image(x, image_height):
    """The fourth max-pool, which the published models apply to 64 x 64 images only."""
    return F.max_pool2d(x, 2) if image_height == 64 else x


class VGG(nn.Module):
    """Five stages of 3 x 3 convolutions, ending in global average pooling.

    Args:
        depth: 8, 11, 13, 16 or 19.
        num_classes: number of logits.

    Input: (B, 3, H, W). Features for 32 x 32 images: (B, 64, 32, 32), (B, 128, 16, 16), (B, 256, 8, 8),
    (B, 512, 4, 4), (B, 512, 4, 4), pooled (B, 512). The first stage counts as the stem: it has no pre-activation.
    """

    def __init__(self, depth, num_classes=100):
        super().__init__()
        if depth not in CONVOLUTIONS:
            raise ValueError(f"depth of a VGG must be one of {sorted(CONVOLUTIONS)}, found {depth}")
        in_channels = (3, *WIDTHS[:-1])
        for i, (convolutions, width) in enumerate(zip(CONVOLUTIONS[depth], WIDTHS, strict=True)):
            self.add_module(f"block{i}", self._stage(in_channels[i], width, convolutions))
        self.pool = GlobalAveragePool()
        self.classifier = nn.Linear(WIDTHS[-1], num_classes)
        init_convolutions(self)
        init_classifier(self.classifier)

    @staticmethod
    def _stage(in_channels, out_channels, convolutions):
        layers = []
        for _ in range(convolutions):
            layers += [nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU()]
            in_channels = out_channels
        return nn.Sequential(*layers[:-1])  # forward applies the last ReLU, to see both sides of it

    def forward(self, x, is_feat=False, preact=False):
        image_height = x.shape[2]
        x = F.relu(self.block0(x))
        features = [x]
        for stage in (self.block1, self.block2, self.block3, self.block4):
            if stage is self.block4:
                x = pool_large_image(x, image_height)
            else:
                x = F.max_pool2d(x, 2)
            pre_activation = stage(x)
            x = F.relu(pre_activation)
            features.append(pre_activation if preact else x)
        pooled = self.pool(x)
        features.append(pooled)
        logits = self.classifier(pooled)
        return (features, logits) if is_feat else logits
