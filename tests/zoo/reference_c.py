"""What the tests of several losses share: layers in NumPy, and random outputs of a student and a teacher."""

import numpy as np
import torch
from torch import nn

from distiller_zoo import Batch, Output, Pair, distiller_dict

CLASSES = 3
NARROW = [(3, 8, 8), (4, 8, 8), (6, 4, 4), (5, 2, 2), (5,)]
WIDE = [(4, 8, 8), (7, 8, 8), (8, 4, 4), (10, 4, 4), (10,)]


def array(x):
    return x.detach().numpy()


def convolution(x, layer):
    """(B, C, H, W) through a convolution of stride 1 that keeps the size."""
    weight, margin = array(layer.weight), layer.weight.shape[2] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    out = np.zeros((len(x), len(weight), *x.shape[2:]))
    for i, j in np.ndindex(x.shape[2:]):
        window = padded[:, :, i : i + weight.shape[2], j : j + weight.shape[3]]
        out[:, :, i, j] = np.einsum("bchw,ochw->bo", window, weight)
    return out if layer.bias is None else out + array(layer.bias)[:, None, None]


def batch_norm(x, layer):
    mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    scale, shift = (array(p)[:, None, None] for p in (layer.weight, layer.bias))
    return (x - mean) / np.sqrt(variance + layer.eps) * scale + shift


def through(x, layers):
    """x through the layers of a Sequential, one by one."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            x = convolution(x, layer)
        elif isinstance(layer, nn.BatchNorm2d):
            x = batch_norm(x, layer)
        elif isinstance(layer, nn.Linear):
            x = x @ array(layer.weight).T + array(layer.bias)
        elif isinstance(layer, nn.ReLU):
            x = x * (x > 0)
        else:
            assert isinstance(layer, nn.Sigmoid)
            x = 1 / (1 + np.exp(-x))
    return x


def kinds(layers):
    """What layers are: "conv1", "conv3" (by size of the kernel), "BatchNorm", "ReLU", "Linear", ..."""
    return [f"conv{m.kernel_size[0]}" if isinstance(m, nn.Conv2d) else type(m).__name__ for m in layers]


def average(x, cells):
    """(B, C, H, H) averaged on cells x cells equal squares."""
    side = x.shape[2] // cells
    assert side * cells == x.shape[2]
    out = np.zeros((*x.shape[:2], cells, cells))
    for i, j in np.ndindex(cells, cells):
        out[:, :, i, j] = x[:, :, i * side : (i + 1) * side, j * side : (j + 1) * side].mean((2, 3))
    return out


def make_pair(shapes_s=NARROW, shapes_t=WIDE, **changes):
    """In float64, with 12 training images, the image i of class i % 3, and batches of 4 at most."""
    torch.manual_seed(0)
    fields = dict(shapes_s=shapes_s, shapes_t=shapes_t, map_s=shapes_s[-2], map_t=shapes_t[-2], batch_size=4)
    fields |= {f"classifier_{x}": nn.Linear(s[-1][0], CLASSES).double() for x, s in (("s", shapes_s), ("t", shapes_t))}
    return Pair(**fields | {"labels": torch.arange(12) % CLASSES} | changes)


def make_outputs(name, pair, count=4, make=torch.randn):
    """(student's, teacher's Output, Batch), with None for whatever the registry says that the method does not read."""
    method = distiller_dict[name]
    torch.manual_seed(1)

    def output(shapes, map_shape):
        features = [make(count, *shape, dtype=torch.float64) for shape in shapes]
        read = [x if kept is not None else None for x, kept in zip(features, method.select(features), strict=True)]
        last_map = make(count, *map_shape, dtype=torch.float64) if method.last_map else None
        return Output(read, make(count, CLASSES, dtype=torch.float64), last_map)

    indices = torch.tensor([7, 0, 5, 11])[:count]
    return output(pair.shapes_s, pair.map_s), output(pair.shapes_t, pair.map_t), Batch(indices % CLASSES, indices)


def make_case(name, pair=None, count=4, make=torch.randn, **options):
    """(loss in float64 with random parameters, student's Output, teacher's, Batch)."""
    pair = pair or make_pair()
    torch.manual_seed(2)
    loss = distiller_dict[name].loss(pair, **options).double()
    for parameter in loss.parameters():
        nn.init.normal_(parameter, std=0.5)
    return loss, *make_outputs(name, pair, count, make)


def inputs(student):
    """What a loss reads of the student but for the logits, ready for a gradient."""
    read = [x for x in (*student.features, student.last_map) if x is not None]
    return [x.requires_grad_() for x in read]


def assert_finite(loss, student, teacher, batch):
    """Loss and gradients are finite, and every declared input has one."""
    leaves = inputs(student)
    value = loss(student, teacher, batch)
    assert value.shape == () and value.isfinite()
    value.backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (*leaves, *loss.parameters()))


def assert_gradient(loss, student, teacher, batch):
    """Backward agrees with finite differences, for the inputs and the loss's parameters, and is not just zero."""
    leaves = [*inputs(student), *loss.parameters()]
    assert torch.autograd.gradcheck(lambda *_: loss(student, teacher, batch), leaves, fast_mode=True)
    grads = torch.autograd.grad(loss(student, teacher, batch), inputs(student))
    assert all(grad.abs().sum() > 0 for grad in grads)


def assert_descends(loss, student, teacher, batch, to=0.5):
    """Adam on the student's outputs as free parameters, and on the loss's own, brings it below `to` of its start."""
    optimizer = torch.optim.Adam([*inputs(student), *loss.parameters()], lr=0.05)
    first = loss(student, teacher, batch).item()
    for _ in range(100):
        optimizer.zero_grad()
        value = loss(student, teacher, batch)
        value.backward()
        optimizer.step()
    assert value.item() < to * first


def weights(name):
    """gamma, alpha, beta: the weights of CE, KD and the method."""
    method = distiller_dict[name]
    return method.gamma, method.alpha, method.beta
