"""What the tests of VID, AB, FSP, FT, KD-SVD, OFD, DKD and DIST share: a small pair, and layers in NumPy."""

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d, correlate2d
from torch import nn

from distiller_zoo import Batch, Output, Pair, distiller_dict

CLASSES = 5


def setup(
    key,
    count=3,
    widths_s=(2, 2, 3, 4),
    widths_t=(3, 3, 4, 5),
    sizes_s=(4, 4, 2, 2),
    sizes_t=(4, 4, 2, 2),
    fill=None,
    **options,
):
    """(loss, student, teacher, batch) of a method, in float64 and training mode, from a fixed seed.

    widths, sizes: of the stem's and the stages' outputs. fill: the value of all features and logits, instead of noise.
    """
    torch.manual_seed(0)
    shapes = [[(w, n, n) for w, n in zip(*each, strict=True)] for each in ((widths_s, sizes_s), (widths_t, sizes_t))]
    shapes = [tuple(each) + (each[-1][:1],) for each in shapes]
    norms = [nn.BatchNorm2d(width).double() for width in widths_t[1:]]
    for norm in norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    loss = distiller_dict[key].loss(Pair(*shapes, norms_t=norms), **options).double()

    def values(*shape):
        noise = torch.randn(*shape, dtype=torch.double)
        return noise if fill is None else torch.full_like(noise, fill)

    student, teacher = (Output([values(count, *shape) for shape in each], values(count, CLASSES)) for each in shapes)
    for tensor in (*student.features, student.logits):
        tensor.requires_grad_()
    return loss, student, teacher, Batch(torch.arange(count) % CLASSES, torch.arange(count))


def term(key, loss):
    """What is minimised for the student: the loss, or its first stage where there is nothing else."""
    return loss.first_stage if distiller_dict[key].first_only else loss


def inputs(key, student):
    """The student's tensors that the registry says the method reads."""
    method = distiller_dict[key]
    if method.on_logits:
        return [student.logits]
    selected = method.select(student.features)
    return [feature for feature, chosen in zip(student.features, selected, strict=True) if chosen is not None]


def check_entry(key, **options):
    """The registry declares the features that are read, all of them, and whether anything trains."""
    method = distiller_dict[key]
    loss, student, teacher, batch = setup(key, **options)
    used = inputs(key, student)
    student, teacher = (each._replace(features=method.select(each.features)) for each in (student, teacher))
    gradients = torch.autograd.grad(term(key, loss.float())(student, teacher, batch), used, allow_unused=True)
    assert all(gradient is not None and gradient.any() for gradient in gradients)
    assert method.trainable == any(True for _ in loss.parameters())


def check_finite(key, count, fill, **options):
    """Loss and gradients of batches that are short, or that hold one value alone."""
    loss, student, teacher, batch = setup(key, count=count, fill=fill, **options)
    value = term(key, loss)(student, teacher, batch)
    value.backward()
    assert value.isfinite()
    for tensor in (*inputs(key, student), *loss.parameters()):
        assert tensor.grad is None or tensor.grad.isfinite().all()


DEGENERATE = pytest.mark.parametrize(("count", "fill"), [(1, None), (2, None), (1, 0.0), (3, 0.0), (3, 1.5)])


def check_gradients(key, **options):
    """Derivatives of the student's tensors, and of what trains with the student, against finite differences."""
    loss, student, teacher, batch = setup(key, **options)
    call = term(key, loss)
    call(student, teacher, batch).backward()
    trained = [parameter for parameter in loss.parameters() if parameter.grad is not None]
    assert torch.autograd.gradcheck(lambda *_: call(student, teacher, batch), (*inputs(key, student), *trained))


def check_fits(key, rate, **options):
    """A few steps down the gradient of the student's tensors make the loss less."""
    loss, student, teacher, batch = setup(key, **options)
    optimizer = torch.optim.SGD(inputs(key, student), lr=rate)
    found = []
    for _ in range(6):
        found.append(term(key, loss)(student, teacher, batch))
        optimizer.zero_grad()
        found[-1].backward()
        optimizer.step()
    assert found == sorted(found, reverse=True) and found[-1] < found[0] - 0.01 * abs(found[0])


def array(tensor):
    return tensor.detach().numpy()


def pooled(x, size, reduce=np.mean):
    """Maps (B, C, H, W) reduced to (B, C, size, size) over blocks of pixels."""
    count, channels, height, width = x.shape
    return reduce(x.reshape(count, channels, size, height // size, size, width // size), axis=(3, 5))


def at_smaller_size(s, t):
    size = min(s.shape[-1], t.shape[-1])
    return pooled(array(s), size), pooled(array(t), size)


def through(layers, x, training=True):
    """x (B, C, H, W) through 1 x 1 and 3 x 3 convolutions of stride 1, batch norms, ReLU and leaky ReLU (0.1)."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            weight = array(layer.weight)
            if isinstance(layer, nn.ConvTranspose2d):
                weight, apply = weight.swapaxes(0, 1), convolve2d
            else:
                apply = correlate2d
            x = np.array([[sum(map(lambda a, b: apply(a, b, mode="same"), maps, w)) for w in weight] for maps in x])
            x = x if layer.bias is None else x + array(layer.bias)[:, None, None]
        elif isinstance(layer, nn.BatchNorm2d):
            mean, variance = array(layer.running_mean), array(layer.running_var)
            if training:
                mean, variance = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
            scale = array(layer.weight) / np.sqrt(variance + 1e-5)
            x = (x - mean[:, None, None]) * scale[:, None, None] + array(layer.bias)[:, None, None]
        else:
            x = np.where(x > 0, x, 0.1 * x if isinstance(layer, nn.LeakyReLU) else 0 * x)
    return x
