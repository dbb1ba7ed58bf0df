"""RipsNet against the published sizes and key names, and against its forward pass written out in NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ripsnet import RipsNet

OPERATORS = ["mean", "sum"]
PUBLISHED_WIDTHS = {
    16: [16, 16, 16],
    32: [32, 16, 16],
    64: [64, 32, 32],
    128: [128, 64, 64],
    256: [256, 128, 128],
    512: [512, 256, 256],
    1024: [512, 256, 256],
    2048: [1024, 512, 256],
}


def network(d=64, operator="mean", seed=0):
    torch.manual_seed(seed)
    return RipsNet(d, operator)


def clouds(count=3, n=10, d=64, seed=0):
    return torch.randn(count, n, d, generator=torch.Generator().manual_seed(seed))


def numpy_forward(state_dict, cloud, operator):
    weights = {key: value.double().numpy() for key, value in state_dict.items()}
    rows = []
    for point in cloud.double().numpy():
        for layer in (1, 2, 3):
            point = np.maximum(weights[f"layer{layer}.linear.weight"] @ point + weights[f"layer{layer}.linear.bias"], 0)
        rows.append(point)
    vector = {"mean": np.mean, "sum": np.sum}[operator](rows, axis=0)
    for layer in (4, 5, 6):
        vector = np.maximum(weights[f"layer{layer}.linear.weight"] @ vector, 0)
    return 1 / (1 + np.exp(-weights["layer7.linear.weight"] @ vector))


def test_parameters_of_the_published_network():
    assert sum(parameter.numel() for parameter in RipsNet(64).parameters()) == 113_896


def test_state_dict_is_that_of_the_published_files():
    shapes = {key: tuple(value.shape) for key, value in RipsNet(64).state_dict().items()}
    assert shapes == {
        "layer1.linear.weight": (64, 64),
        "layer1.linear.bias": (64,),
        "layer2.linear.weight": (32, 64),
        "layer2.linear.bias": (32,),
        "layer3.linear.weight": (32, 32),
        "layer3.linear.bias": (32,),
        "layer4.linear.weight": (50, 32),
        "layer5.linear.weight": (100, 50),
        "layer6.linear.weight": (200, 100),
        "layer7.linear.weight": (400, 200),
    }


@pytest.mark.parametrize("d, widths", PUBLISHED_WIDTHS.items())
def test_published_widths(d, widths):
    state_dict = RipsNet(d).state_dict()
    assert [state_dict[f"layer{layer}.linear.weight"].shape[0] for layer in (1, 2, 3)] == widths
    assert RipsNet.width_of(state_dict) == d


@pytest.mark.parametrize("d, row", [(1, 16), (15, 16), (17, 32), (100, 128), (640, 1024), (960, 1024), (4096, 2048)])
def test_other_widths_take_the_next_larger_row(d, row):
    state_dict = RipsNet(d).state_dict()
    assert [state_dict[f"layer{layer}.linear.weight"].shape[0] for layer in (1, 2, 3)] == PUBLISHED_WIDTHS[row]
    assert RipsNet.width_of(state_dict) == d
    assert RipsNet(d)(torch.zeros(2, 3, d)).shape == (2, 400)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("d", [3, 64])
def test_forward_equals_numpy(d, operator):
    net = network(d, operator)
    batch = clouds(d=d)
    images = net(batch)
    assert images.shape == (3, 400) and ((images > 0) & (images < 1)).all()
    for cloud, image in zip(batch, images, strict=True):
        np.testing.assert_allclose(image.detach(), numpy_forward(net.state_dict(), cloud, operator), rtol=1e-5)


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_single_cloud_equals_a_batch_of_one(operator):
    net, batch = network(operator=operator), clouds(1)
    assert net(batch[0]).shape == (400,)
    torch.testing.assert_close(net(batch[0]), net(batch)[0])


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.sampled_from(OPERATORS), st.integers(1, 40), st.integers(0, 1000))
def test_the_order_of_the_points_does_not_matter(operator, n, seed):
    net, batch = network(operator=operator), clouds(n=n, seed=seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(net(batch[:, order]), net(batch), rtol=1e-5, atol=1e-6)


def test_only_the_sum_sees_the_size_of_the_cloud():
    batch = clouds()
    twice = torch.cat([batch, batch], dim=1)
    mean, total = network(operator="mean"), network(operator="sum")
    torch.testing.assert_close(mean(twice), mean(batch), rtol=1e-5, atol=1e-6)
    assert (total(twice) - total(batch)).abs().max() > 1e-3


def test_the_default_pooling_is_the_mean():
    net = RipsNet(32)
    assert (net.d, net.operator) == (32, "mean")


def test_the_output_is_differentiable():
    batch = clouds().requires_grad_()
    network()(batch).sum().backward()
    assert batch.grad.isfinite().all() and batch.grad.abs().max() > 0


@pytest.mark.parametrize("d", [0, -1, 2.5, "64", None, True])
def test_wrong_widths_are_refused(d):
    with pytest.raises(ValueError, match="positive integer"):
        RipsNet(d)


@pytest.mark.parametrize("operator", ["max", "", None])
def test_wrong_operators_are_refused(operator):
    with pytest.raises(ValueError, match="operator must be one of mean, sum"):
        RipsNet(64, operator)


@pytest.mark.parametrize("shape", [(64,), (5, 63), (2, 5, 63), (1, 2, 5, 64), (2, 0, 64)])
def test_wrong_clouds_are_refused(shape):
    with pytest.raises(ValueError, match="64"):
        RipsNet(64)(torch.zeros(shape))


def test_width_of_another_state_dict():
    with pytest.raises(ValueError, match="layer1.linear.weight"):
        RipsNet.width_of(torch.nn.Linear(3, 3).state_dict())
