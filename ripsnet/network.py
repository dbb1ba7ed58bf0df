"""RipsNet: a DeepSets network that maps a point cloud to the vectorisation of its persistence diagram.

de Surrel, Hensel, Carriere, Lacombe, Ike, Kurihara, Glisse, Chazal, "RipsNet: a general architecture for fast and
robust estimation of the persistent homology of point clouds", TAG-ML 2022 (arXiv 2202.01725), equation 1, with the
widths of TopKD (Kim et al., ICML 2024).
"""

import torch
from torch import Tensor, nn

IMAGE_PIXELS = 400  # the published persistence image of 20 x 20 grid points

# Widths of the three per-point layers, by the width d of the point cloud.
POINT_WIDTHS = {
    16: (16, 16, 16),
    32: (32, 16, 16),
    64: (64, 32, 32),
    128: (128, 64, 64),
    256: (256, 128, 128),
    512: (512, 256, 256),
    1024: (512, 256, 256),
    2048: (1024, 512, 256),
}
IMAGE_WIDTHS = (50, 100, 200)

POOLING = {"mean": torch.mean, "sum": torch.sum}


class _Layer(nn.Module):
    """A linear layer and its activation; the published state dicts call the former `linear`."""

    def __init__(self, in_features: int, out_features: int, activation: nn.Module, bias: bool):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.linear(x))


class RipsNet(nn.Module):
    """Three linear layers on every point, pooling over the points, four linear layers on the pooled vector.

    ReLU follows every layer but the last, which a sigmoid brings to the range of a persistence image divided by its
    data set's maximum. The per-point layers have a bias, the others none. The output does not depend on the order of
    the points. With mean pooling it does not depend on their number as such; with sum pooling it does, so a short
    last batch of an epoch is a different input from a full one.

    Args:
        d: width of the point clouds. A width that is not in `POINT_WIDTHS` takes the layer widths of the next larger
            one there, and one above 2048 those of 2048.
        operator: pooling over the points, "mean" or "sum".
        pixels: of the persistence images.

    Raises:
        ValueError: for a width below 1 or an unknown operator.
    """

    def __init__(self, d: int, operator: str = "mean", pixels: int = IMAGE_PIXELS):
        super().__init__()
        if isinstance(d, bool) or not isinstance(d, int) or d < 1:
            raise ValueError(f"RipsNet: d is the width of the point clouds, a positive integer; found {d!r}")
        if operator not in POOLING:
            raise ValueError(f"RipsNet: operator must be one of {', '.join(POOLING)}; found {operator!r}")
        self.d = d
        self.operator = operator
        self.pixels = pixels
        row = min((width for width in POINT_WIDTHS if width >= d), default=max(POINT_WIDTHS))
        widths = POINT_WIDTHS[row]
        self.layer1 = _Layer(d, widths[0], nn.ReLU(), bias=True)
        self.layer2 = _Layer(widths[0], widths[1], nn.ReLU(), bias=True)
        self.layer3 = _Layer(widths[1], widths[2], nn.ReLU(), bias=True)
        self.layer4 = _Layer(widths[2], IMAGE_WIDTHS[0], nn.ReLU(), bias=False)
        self.layer5 = _Layer(IMAGE_WIDTHS[0], IMAGE_WIDTHS[1], nn.ReLU(), bias=False)
        self.layer6 = _Layer(IMAGE_WIDTHS[1], IMAGE_WIDTHS[2], nn.ReLU(), bias=False)
        self.layer7 = _Layer(IMAGE_WIDTHS[2], pixels, nn.Sigmoid(), bias=False)

    def forward(self, clouds: Tensor) -> Tensor:
        """Approximate the normalised persistence images of point clouds.

        Args:
            clouds: (N, n, d), or (n, d) for a single cloud, n >= 1.

        Returns:
            (N, pixels) or (pixels,), every pixel in (0, 1), in the order of `ripsnet.images`.

        Raises:
            ValueError: when the clouds have no points or a width other than `d`.
        """
        if clouds.dim() not in (2, 3) or clouds.shape[-1] != self.d or clouds.shape[-2] == 0:
            raise ValueError(
                f"RipsNet: expected clouds of shape (N, n, {self.d}) or (n, {self.d}) with n >= 1; "
                f"found {tuple(clouds.shape)}"
            )
        points = self.layer3(self.layer2(self.layer1(clouds)))
        pooled = POOLING[self.operator](points, dim=-2)
        return self.layer7(self.layer6(self.layer5(self.layer4(pooled))))

    @staticmethod
    def width_of(state_dict: dict[str, Tensor]) -> int:
        """Width d of the clouds that a RipsNet with this state dict takes.

        Raises:
            ValueError: when the state dict is not that of a RipsNet.
        """
        if "layer1.linear.weight" not in state_dict:
            raise ValueError("not the state dict of a RipsNet: it has no key layer1.linear.weight")
        return state_dict["layer1.linear.weight"].shape[1]

    def extra_repr(self) -> str:
        return f"d={self.d}, operator={self.operator!r}"
