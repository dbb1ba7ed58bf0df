"""MGD: Yang et al., "Masked Generative Distillation", ECCV 2022 (arXiv 2205.01529)."""

import torch
from torch import Tensor, nn

from .method import Batch, Output, Pair


class MGD(nn.Module):
    """The teacher's last map, generated from the student's with parts of it masked.

    The student's map before the pooling is aligned to the teacher's width by a 1 x 1 convolution where the widths
    differ, masked, and passed through a generator: a 3 x 3 convolution, ReLU, and another. The loss is the squared
    error summed over all elements and divided by the batch size.
    mask "channel": each channel of each image is dropped with probability `rate`, as the public code does it.
    mask "pixel": each pixel, in all channels at once, as the paper's text has it.
    What is kept is not scaled up. The masks come from PyTorch's generator, whose state belongs to a run's checkpoint,
    so that a resumed run draws the same.

    The published weight is 7e-5 for this sum (ImageNet, ResNet34 > ResNet18 and ResNet50 > MobileNetV1 alike, rate
    0.15; 100 epochs, and gradients clipped to a norm of 5 for the latter). For maps of 512 x 7 x 7 it is 1.76 times the
    mean squared error, for those of 64 x 8 x 8 it is 0.29 times. For CIFAR-100 no weight is published: the same one is
    assumed. ValueError for maps of different sizes, which the published form does not have.
    """

    def __init__(self, pair: Pair, *, mask: str = "channel", rate: float = 0.15):
        super().__init__()
        if mask not in ("channel", "pixel"):
            raise ValueError(f"mask: found {mask!r}, expected channel or pixel")
        if not 0 <= rate < 1:
            raise ValueError(f"rate: found {rate}, expected 0 to below 1")
        (width_s, *size_s), (width_t, *size_t) = pair.map_s, pair.map_t
        if size_s != size_t:
            found_s, found_t = (" x ".join(map(str, size)) for size in (size_s, size_t))
            raise ValueError(
                f"needs equal sizes of the last maps, found {found_s} for the student and {found_t} for the teacher"
            )
        self.mask, self.rate = mask, rate
        self.align: nn.Module = nn.Identity()
        if width_s != width_t:
            self.align = nn.Conv2d(width_s, width_t, 1)
        self.generator = nn.Sequential(
            nn.Conv2d(width_t, width_t, 3, padding=1), nn.ReLU(), nn.Conv2d(width_t, width_t, 3, padding=1)
        )

    def draw(self, x: Tensor) -> Tensor:
        """A mask for maps (B, C, H, W), 0 with probability `rate` and else 1: (B, C, 1, 1) or (B, 1, H, W)."""
        batch, channels, height, width = x.shape
        shape = (batch, channels, 1, 1) if self.mask == "channel" else (batch, 1, height, width)
        return (torch.rand(shape, device=x.device) >= self.rate).to(x.dtype)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        aligned = self.align(student.last_map)
        generated = self.generator(aligned * self.draw(aligned))
        return (generated - teacher.last_map).square().sum() / len(aligned)
