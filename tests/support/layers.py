"""Layers of networks in NumPy, on maps (B, C, H, W)."""

import numpy as np
from torch import nn


def array(x):
    return x.detach().numpy()


def convolution(x, weight):
    """weight (out, in, k, k), of stride 1, filled up with zeros so that the size stays."""
    size, margin = weight.shape[2], weight.shape[2] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    out = np.zeros((len(x), len(weight), *x.shape[2:]))
    for i, j in np.ndindex(x.shape[2:]):
        out[:, :, i, j] = np.einsum("bchw,ochw->bo", padded[:, :, i : i + size, j : j + size], weight)
    return out


def batch_norm(x, layer):
    """In training mode: by the batch's own mean and variance."""
    mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    scale, shift = (array(p)[:, None, None] for p in (layer.weight, layer.bias))
    return (x - mean) / np.sqrt(variance + 1e-5) * scale + shift


def through(x, layers):
    """x through the layers of a Sequential, one by one."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            weight = array(layer.weight)
            if isinstance(layer, nn.ConvTranspose2d):  # of stride 1: the convolution with the kernel turned round
                weight = weight.swapaxes(0, 1)[:, :, ::-1, ::-1]
            x = convolution(x, weight)
            x = x if layer.bias is None else x + array(layer.bias)[:, None, None]
        elif isinstance(layer, nn.BatchNorm2d):
            x = batch_norm(x, layer)
        elif isinstance(layer, nn.Linear):
            x = x @ array(layer.weight).T + array(layer.bias)
        elif isinstance(layer, nn.Sigmoid):
            x = 1 / (1 + np.exp(-x))
        else:
            slope = layer.negative_slope if isinstance(layer, nn.LeakyReLU) else 0
            x = np.where(x > 0, x, slope * x)
    return x


def kinds(layers):
    """What layers are: "conv1", "conv3" (by size of the kernel), "BatchNorm", "ReLU", "Linear", ..."""
    return [f"conv{m.kernel_size[0]}" if isinstance(m, nn.Conv2d) else type(m).__name__ for m in layers]


def average(x, cells, reduce=np.mean):
    """(B, C, H, H) averaged, or reduced otherwise, on cells x cells equal squares."""
    side = x.shape[2] // cells
    assert side * cells == x.shape[2] == x.shape[3]
    return reduce(x.reshape(*x.shape[:2], cells, side, cells, side), axis=(3, 5))


def at_smaller_size(s, t):
    """Two maps, each averaged to the smaller of the two sizes."""
    size = min(s.shape[2], t.shape[2])
    return average(s, size), average(t, size)
