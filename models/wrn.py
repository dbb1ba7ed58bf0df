"""Wide ResNets.

Source: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016 (blocks in the order batch norm, ReLU, convolution
of He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016; no dropout).
"""

from torch import nn
from torch.nn import functional as F

from .layers import GlobalAveragePool, init_convolutions


class PreActivationBlock(nn.Module):
    """Two 3 x 3 convolutions, each after batch norm and ReLU, beside a shortcut.

    Returns the block's input after its first batch norm, and its output. Where the width changes, the shortcut is a
    1 x 1 convolution of the activated input; elsewhere it is the raw input.
    """

    def __init__(self, in_channels, out_channels, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.convShortcut = None
        if in_channels != out_channels:
            self.convShortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x):
        normalised = self.bn1(x)
        activated = F.relu(normalised)
        out = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        return normalised, out + shortcut


class WideStage(nn.Module):
    """Blocks in a row; returns the stage's input after its first batch norm, and the stage's output.

    The former is the pre-activation of the stage before. To hand it out from here, and not to normalise a second time,
    keeps the running statistics right: a batch counts once.
    """

    def __init__(self, in_channels, out_channels, blocks, stride):
        super().__init__()
        first = PreActivationBlock(in_channels, out_channels, stride)
        self.layer = nn.Sequential(
            first, *(PreActivationBlock(out_channels, out_channels, stride=1) for _ in range(blocks - 1))
        )

    def forward(self, x):
        first, *others = self.layer
        normalised, x = first(x)
        for block in others:
            _, x = block(x)
        return normalised, x


class WideResNet(nn.Module):
    """A convolution and three stages of (depth - 4) / 6 blocks each.

    Args:
        depth: number of convolutions, 6 n + 4.
        widen_factor: k; the stages have 16 k, 32 k and 64 k channels.
        num_classes: number of logits.

    Input: (B, 3, H, W). Features for 32 x 32 images: first convolution (B, 16, 32, 32), stages (B, 16 k, 32, 32),
    (B, 32 k, 16, 16), (B, 64 k, 8, 8), pooled (B, 64 k). A stage's feature is the raw output of its last block, its
    pre-activation that output after the batch norm which follows it.
    """

    def __init__(self, depth, widen_factor, num_classes=100):
        super().__init__()
        if (depth - 4) % 6:
            raise ValueError(f"depth of a wide ResNet must be 6 n + 4, found {depth}")
        blocks = (depth - 4) // 6
        widths = [16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = WideStage(16, widths[0], blocks, stride=1)
        self.block2 = WideStage(widths[0], widths[1], blocks, stride=2)
        self.block3 = WideStage(widths[1], widths[2], blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.pool = GlobalAveragePool()
        self.fc = nn.Linear(widths[2], num_classes)
        init_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x, is_feat=False, preact=False):
        stem = self.conv1(x)
        _, out1 = self.block1(stem)
        pre1, out2 = self.block2(out1)
        pre2, out3 = self.block3(out2)
        pre3 = self.bn1(out3)
        pooled = self.pool(F.relu(pre3))
        stages = [pre1, pre2, pre3] if preact else [out1, out2, out3]
        logits = self.fc(pooled)
        return ([stem, *stages, pooled], logits) if is_feat else logits
