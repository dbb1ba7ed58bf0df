"""A layer of a network as point clouds."""

from collections.abc import Sequence

from torch import Tensor, nn

from models import feature_shapes

from ..errors import UserError


def read_layer(features: Sequence[Tensor], logits: Tensor, layer: int) -> Tensor:
    """The tensor a layer index means: 0 the logits, -1 the pooled vector, -2 the last stage's output, and so on."""
    return logits if layer == 0 else features[layer]


def as_points(feature: Tensor) -> Tensor:
    """A batch's feature as points (B, d) in float32; a map (B, d, H, W) is average-pooled to 1 x 1 first."""
    return feature.float().mean(dim=(2, 3)) if feature.ndim == 4 else feature.float()


def in_clouds(points: Tensor, size: int | None) -> Tensor:
    """The points (B, d) of a batch as clouds (N, size, d) of consecutive ones.

    What a short batch has beyond its whole clouds is left out; a batch of fewer points is one cloud (1, B, d), and so
    is every batch if size is None.
    """
    if size is None or len(points) <= size:
        return points.unsqueeze(0)
    count = len(points) // size
    return points[: count * size].view(count, size, -1)


def layer_width(model: nn.Module, layer: int, classes: int, option: str, image_size: int) -> int:
    """Channels of a layer index, from a dry forward pass. Raises UserError if the network has no such layer."""
    shapes = feature_shapes(model, image_size)
    if -layer > len(shapes):
        raise UserError(f"{option}: found {layer}, expected 0 (logits) or -1 (pooled vector) to -{len(shapes)} (stem)")
    return classes if layer == 0 else shapes[layer][0]
