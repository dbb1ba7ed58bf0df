"""A layer of a network as a point cloud."""

from collections.abc import Sequence

from torch import Tensor, nn

from models import feature_shapes

from ..errors import UserError


def read_layer(features: Sequence[Tensor], logits: Tensor, layer: int) -> Tensor:
    """The tensor a layer index means: 0 the logits, -1 the pooled vector, -2 the last stage's output, and so on."""
    return logits if layer == 0 else features[layer]


def as_cloud(feature: Tensor) -> Tensor:
    """A batch's feature as a point cloud (n, d) in float32; a map (n, d, H, W) is average-pooled to 1 x 1 first."""
    return feature.float().mean(dim=(2, 3)) if feature.ndim == 4 else feature.float()


def layer_width(model: nn.Module, layer: int, classes: int, option: str, image_size: int = 32) -> int:
    """Channels of a layer index, from a dry forward pass. Raises UserError if the network has no such layer."""
    shapes = feature_shapes(model, image_size)
    if -layer > len(shapes):
        raise UserError(f"{option}: found {layer}, expected 0 (logits) or -1 (pooled vector) to -{len(shapes)} (stem)")
    return classes if layer == 0 else shapes[layer][0]
