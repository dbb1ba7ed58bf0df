"""NORM: Liu et al., "NORM: Knowledge Distillation via N-to-One Representation Matching", ICLR 2023 (2305.13803)."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .blocks import BatchNorm, check_positive
from .method import Batch, Output, Pair, classifier

EPS = 1e-7
SCALE = 2.5


@fx.wrap  # torch.fx cannot trace a choice by size, so it keeps the call as it stands
def of_width(x: Tensor, channels: int) -> Tensor:
    """x (B, C, H, W) if C is the expected number of channels; ValueError if not."""
    if x.shape[1] != channels:
        raise ValueError(f"before: found a submodule that is given {x.shape[1]} channels, expected {channels}")
    return x


class Transform(nn.Module):
    """The feature transform, before another module: maps x (B, C, h, w) become x + contract(expand(x)).

    expand is a 1 x 1 convolution to `width` channels with batch norm, contract one back to C; linear, and without bias.
    """

    def __init__(self, channels: int, width: int, following: nn.Module):
        super().__init__()
        self.channels = channels
        self.expand = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), BatchNorm(width))
        self.contract = nn.Sequential(nn.Conv2d(width, channels, 1, bias=False), BatchNorm(channels))
        self.following = following

    def forward(self, x: Tensor) -> Tensor:
        x = of_width(x, self.channels)
        return self.following(x + self.contract(self.expand(x)))


def affine(layers: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Matrix (out, in) and shift (out,), in float64, of a 1 x 1 convolution and a batch norm in eval mode."""
    convolution, norm = layers
    assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    weight, mean, variance, scale, shift = (
        x.detach().double() for x in (convolution.weight.flatten(1), mean, variance, norm.weight, norm.bias)
    )
    factor = scale / (variance + norm.eps).sqrt()
    return factor[:, None] * weight, shift - factor * mean


class NORMStudent(nn.Module):
    """The student with NORM's feature transform in it, which is trained and deployed: called as every network is.

    The transform stands before the submodule `before`: the pooling, or one that is given the last stage's output, as
    the batch norm between it and a wide ResNet's pooling. Inside it has `segments` times as many channels as the
    teacher's last stage; those maps come second to last among the features, before the pooled vector. ValueError for
    another submodule, or none, at the first forward pass at the latest.
    """

    def __init__(self, network: nn.Module, pair: Pair, *, segments: int = 8, before: str = "pool"):
        super().__init__()
        check_positive(segments=segments)
        try:
            following = network.get_submodule(before)
        except AttributeError:
            raise ValueError(f"before: found {before!r}, which is no submodule of the student") from None
        self.body, self.before = network, before
        channels = pair.map_s[0] if before == "pool" else pair.shapes_s[-2][0]
        network.set_submodule(before, Transform(channels, segments * pair.shapes_t[-2][0], following))

    def forward(self, x: Tensor, is_feat: bool = False, preact: bool = False):
        if not is_feat:
            return self.body(x)
        expanded: list[Tensor] = []
        expand = self.body.get_submodule(f"{self.before}.expand")
        with expand.register_forward_hook(lambda _, inputs, output: expanded.append(output)):
            features, logits = self.body(x, is_feat=True, preact=preact)
        return [*features[:-1], expanded[0], features[-1]], logits

    @property
    def pool(self) -> nn.Module:
        """What averages the last map, which the transform has changed."""
        pool = self.body.get_submodule("pool")
        return pool.following if isinstance(pool, Transform) else pool

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The network without the transform whose logits are the same in eval mode, up to rounding.

        Pooling is a mean and all that follows is linear, so the transform becomes part of the classifier, as
        `evaluate.py --merge` uses it. ValueError where it stands before something else than the pooling.
        """
        if self.before != "pool":
            raise ValueError(
                f"the transform before {self.before!r} cannot be merged into the classifier, only at 'pool'"
            )
        network = copy.deepcopy(self.body)
        transform = network.get_submodule("pool")
        assert isinstance(transform, Transform)
        network.set_submodule("pool", transform.following)
        (expand, shift), (contract, offset) = (affine(each) for each in (transform.expand, transform.contract))
        _, linear = classifier(network)
        weight = linear.weight.double()
        linear.bias.copy_(linear.bias.double() + weight @ (contract @ shift + offset))
        linear.weight.copy_(weight + weight @ contract @ expand)
        return network


class NORM(nn.Module):
    """Mean squared errors between the teacher's last stage and each segment of the student's expanded map, summed.

    The student's transform makes maps of N times the teacher's width; each of the N segments is compared with the
    output of the teacher's last stage (of a wide ResNet: before the batch norm that follows). The larger map is
    max-pooled to the size of the smaller one. ValueError where that is no multiple of it.

    logits "standardised": CE and KD see 2.5 * (z - mean) / (deviation + 1e-7) of both networks' logits, over the
    classes of an image, biased deviation. The paper's abstract and README do not name it, but the published numbers
    were made with it. It changes no prediction, and the deployed network's logits are z. "raw": CE and KD see z.

    Published: weights 0.1 (CE) and 1 with N = 8 for resnet32x4 > resnet8x4; the others' were searched among 1/16 to 1/2
    for CE and are not said. NORM + KD has no published weight. The loss has its weight times 0.1 for epochs 1 to 10 of
    240, 0.5 to 20, 1 to 180, 0.5 to 210, and 0.1 from there on; elsewhere, the same shares of a run. ImageNet, ResNet34
    > ResNet18: weight 1 for CE, ResNet50 > MobileNetV1: 1/8, with 0.1 for epochs 1 to 5 of 100, 0.5 to 15, 0.9 to 60,
    0.5 to 80, 0.1 to the end, at a cosine learning rate. That the transform comes right before the pooling in
    MobileNetV2 and ShuffleNetV2 too, after their last 1 x 1 convolution, is assumed.
    """

    def __init__(self, pair: Pair, *, logits: str = "standardised"):
        super().__init__()
        if logits not in ("standardised", "raw"):
            raise ValueError(f"logits: found {logits!r}, expected standardised or raw")
        self.logits = logits
        (width_s, size_s, _), (width_t, size_t, _) = pair.shapes_s[-2], pair.shapes_t[-2]
        self.segments = width_s // width_t
        if max(size_s, size_t) % min(size_s, size_t):
            raise ValueError(
                f"needs maps of which one's size is a multiple of the other's, found {size_s} and {size_t}"
            )

    def rescale(self, logits: Tensor) -> Tensor:
        """What CE and KD see of logits (B, classes)."""
        if self.logits == "raw":
            return logits
        centred = logits - logits.mean(dim=1, keepdim=True)
        return SCALE * centred / (logits.std(dim=1, keepdim=True, correction=0) + EPS)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        expanded, target = student.features[-2], teacher.features[-2]
        size = min(expanded.shape[2], target.shape[2])
        expanded, target = (F.max_pool2d(x, x.shape[2] // size) for x in (expanded, target))
        return (expanded.unflatten(1, (self.segments, -1)) - target[:, None]).square().mean() * self.segments
