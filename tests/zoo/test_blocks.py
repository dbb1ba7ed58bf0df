"""The pieces that several losses share, against formulas and PyTorch's own layers."""

import numpy as np
import pytest
import scipy.stats
import torch
from support.layers import array, average, kinds
from torch import nn

from distiller_zoo.blocks import BatchNorm, bottleneck, pearson, regressor, safe_norm, to_smaller


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (1, 3, 2, 2), (2, 3, 1, 1)])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_is_pytorchs(shape, training):
    torch.manual_seed(0)
    ours, theirs = BatchNorm(3).train(training), nn.BatchNorm2d(3).train(training)
    x = torch.randn(shape)
    assert torch.equal(ours(x), theirs(x))
    assert all(torch.equal(*each) for each in zip(ours.buffers(), theirs.buffers(), strict=True))


def test_batch_norm_takes_a_single_value_by_the_running_statistics():
    norm = BatchNorm(2)
    norm.running_mean, norm.running_var = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 9.0])
    nn.init.constant_(norm.weight, 3.0)
    nn.init.constant_(norm.bias, 0.5)
    x = torch.tensor([5.0, -1.0])[None, :, None, None]
    expected = torch.tensor([3 * (5 - 1) / 2 + 0.5, 3 * (-1 - 2) / 3 + 0.5])
    torch.testing.assert_close(norm(x).flatten(), expected, rtol=1e-5, atol=0)
    assert norm.running_mean.tolist() == [1, 2] and norm.num_batches_tracked == 0


@pytest.mark.parametrize("size_s, size_t", [(8, 4), (4, 8), (4, 4)])
def test_to_smaller_averages_the_larger_map(size_s, size_t):
    torch.manual_seed(0)
    s, t = torch.randn(2, 3, size_s, size_s), torch.randn(2, 5, size_t, size_t)
    small_s, small_t = to_smaller(s, t)
    np.testing.assert_allclose(array(small_s), average(array(s), 4), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(array(small_t), average(array(t), 4), rtol=1e-5, atol=1e-6)
    assert (small_s is s) == (size_s == 4)


@pytest.mark.parametrize(
    "size_s, size_t, kind, kernel",
    [
        (8, 8, nn.Conv2d, 1),
        (8, 4, nn.Conv2d, 3),
        (8, 1, nn.Conv2d, 3),
        (9, 3, nn.Conv2d, 3),
        (4, 8, nn.ConvTranspose2d, 4),
        (2, 8, nn.ConvTranspose2d, 8),
        (3, 9, nn.ConvTranspose2d, 5),
    ],
)
@pytest.mark.parametrize("count", [1, 2])
def test_regressor(size_s, size_t, kind, kernel, count):
    layers = regressor((3, size_s, size_s), (5, size_t, size_t))
    assert layers(torch.randn(count, 3, size_s, size_s)).shape == (count, 5, size_t, size_t)
    assert isinstance(layers[0], kind) and layers[0].kernel_size == (kernel, kernel) and layers[0].bias is None
    assert isinstance(layers[1], BatchNorm)


@pytest.mark.parametrize("size_s, size_t", [(8, 3), (3, 8), (8, 12)])
def test_regressor_refuses_sizes_that_are_no_multiples(size_s, size_t):
    with pytest.raises(ValueError, match=f"{size_s} x {size_s} to {size_t} x {size_t}"):
        regressor((3, size_s, size_s), (5, size_t, size_t))


def test_bottleneck():
    layers = bottleneck(3, 2, 5)
    shapes = [tuple(m.weight.shape) for m in layers if isinstance(m, nn.Conv2d)]
    assert shapes == [(2, 3, 1, 1), (2, 2, 3, 3), (5, 2, 1, 1)]
    block = ["BatchNorm", "ReLU"]
    assert kinds(layers) == ["conv1", *block, "conv3", *block, "conv1", "BatchNorm"]
    assert all(layers(torch.randn(count, 3, 1, 1)).shape == (count, 5, 1, 1) for count in (1, 2))


def test_pearson_is_scipys():
    a, b = np.random.default_rng(0).normal(size=(2, 6, 9))
    expected = [scipy.stats.pearsonr(*rows).statistic for rows in zip(a, b, strict=True)]
    torch.testing.assert_close(pearson(torch.tensor(a), torch.tensor(b)), torch.tensor(expected))


def test_pearson_of_a_constant_is_zero_with_a_finite_gradient():
    a, b = torch.full((7,), 0.1, requires_grad=True), torch.randn(7, requires_grad=True)
    value = pearson(a, b)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert a.grad.isfinite().all() and b.grad.isfinite().all()


def test_safe_norm():
    x = torch.tensor([[3.0, -4.0], [0.0, 0.0], [0.0, 2.0]], requires_grad=True)
    norm = safe_norm(x)
    assert norm.tolist() == [5, 0, 2]
    norm.sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([[0.6, -0.8], [0.0, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(safe_norm(x, dim=0), torch.tensor([3.0, 20.0**0.5]))
    wide = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(safe_norm, (wide,))
