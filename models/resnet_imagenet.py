"""ResNets for ImageNet's images of 224 x 224.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1; where the shape changes, the
shortcut is a 1 x 1 convolution (option B of section 3.3). Names and weights are torchvision's (IMAGENET1K_V1), which
differ from the paper in one place: the stride of a bottleneck lies on its 3 x 3 convolution.
"""

from torch import nn
from torch.nn import functional as F

from . import resnet50
from .layers import GlobalAveragePool, ReluStage, init_convolutions, through_stages
from .resnet import BasicBlock


class Bottleneck(resnet50.Bottleneck):
    """That of the small ResNet-50, with torchvision's name for the shortcut."""

    shortcut_name = "downsample"


STAGES = {18: (BasicBlock, (2, 2, 2, 2)), 34: (BasicBlock, (3, 4, 6, 3)), 50: (Bottleneck, (3, 4, 6, 3))}


class ResNetImageNet(nn.Module):
    """A 7 x 7 stem of stride 2 with a max-pool, and four stages of blocks.

    Args:
        depth: number of weighted layers; 18 and 34 have basic blocks (e = 1), 50 has bottlenecks (e = 4).
        num_classes: number of logits.

    Input: (B, 3, H, W). Features for 224 x 224 images: stem after the max-pool (B, 64, 56, 56), stages
    (B, 64 e, 56, 56), (B, 128 e, 28, 28), (B, 256 e, 14, 14), (B, 512 e, 7, 7), pooled (B, 512 e).
    """

    def __init__(self, depth, num_classes=1000):
        super().__init__()
        block, counts = STAGES[depth]
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        width = 64
        for i, count in enumerate(counts):
            channels, stride = 64 * 2**i, 1 if i == 0 else 2
            stage = [block(width, channels, stride)]
            width = block.expansion * channels
            stage += [block(width, channels, stride=1) for _ in range(count - 1)]
            self.add_module(f"layer{i + 1}", ReluStage(*stage))
        self.pool = GlobalAveragePool()
        self.fc = nn.Linear(width, num_classes)
        init_convolutions(self)

    def forward(self, x, is_feat=False, preact=False):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        x, features = through_stages(x, (self.layer1, self.layer2, self.layer3, self.layer4), preact)
        pooled = self.pool(x)
        logits = self.fc(pooled)
        return ([*features, pooled], logits) if is_feat else logits
