"""MGD against its definition with SciPy's correlation; masks, their randomness, and what is refused."""

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from scipy.stats import binomtest

from distiller_zoo import Batch, Output, Pair, distiller_dict

MGD = distiller_dict["mgd"].loss


def case(map_s=(3, 4, 4), map_t=(5, 4, 4), count=3, make=torch.randn, **options):
    """(loss, student, teacher, batch) in float64."""
    torch.manual_seed(0)
    loss = MGD(Pair((), (), map_s, map_t), **options).double()
    student, teacher = (Output([], None, make(count, *shape, dtype=torch.float64)) for shape in (map_s, map_t))
    student.last_map.requires_grad_()
    return loss, student, teacher, Batch(torch.zeros(count).long(), torch.arange(count))


def array(x):
    return x.detach().numpy()


def convolved(x, layer):
    """(C, H, W) through a convolution with zeros around, channel by channel."""
    weight, bias = array(layer.weight), array(layer.bias)
    sums = [sum(correlate2d(c, k, mode="same") for c, k in zip(x, kernels, strict=True)) for kernels in weight]
    return np.stack(sums) + bias[:, None, None]


@pytest.mark.parametrize("mask", ["channel", "pixel"])
@pytest.mark.parametrize("map_s", [(3, 4, 4), (5, 4, 4)])
def test_formula(mask, map_s):
    loss, student, teacher, batch = case(map_s, mask=mask)
    drawn = torch.tensor([[1.0, 0, 1, 1, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]).double()[:, :, None, None]
    if mask == "pixel":
        drawn = (torch.arange(48).reshape(3, 1, 4, 4) % 3 > 0).double()
    loss.draw = lambda x: drawn
    expected = 0.0
    for s, t, m in zip(array(student.last_map), array(teacher.last_map), array(drawn), strict=True):
        if map_s[0] != 5:
            s = np.einsum("oc,chw->ohw", array(loss.align.weight)[..., 0, 0], s) + array(loss.align.bias)[:, None, None]
        hidden = convolved(s * m, loss.generator[0])
        expected += ((convolved(hidden * (hidden > 0), loss.generator[2]) - t) ** 2).sum()
    assert len(loss.generator) == 3
    assert (sum(p.numel() for p in loss.align.parameters()) == 0) == (map_s[0] == 5)
    assert loss(student, teacher, batch).item() == pytest.approx(expected / 3, rel=1e-10)


def test_the_published_weight_as_one_of_the_mean_squared_error():
    """7e-5 times the sum is 1.76 times the mean for 512 x 7 x 7, 7.02 for 2048 x 7 x 7, 0.29 for 64 x 8 x 8."""
    for shape, weight in (((512, 7, 7), 1.76), ((2048, 7, 7), 7.02), ((64, 8, 8), 0.29)):
        torch.manual_seed(0)
        generated, target = torch.randn(2, 2, *shape)
        loss = MGD(Pair((), (), (2, *shape[1:]), (2, *shape[1:])), rate=0.0)
        loss.generator = torch.nn.Identity()
        value = loss(Output([], None, generated), Output([], None, target), None)
        mean = (generated - target).square().mean()
        assert distiller_dict["mgd"].beta * (value / mean).item() == pytest.approx(weight, abs=6e-3)


@pytest.mark.parametrize("mask, shape", [("channel", (64, 50, 1, 1)), ("pixel", (64, 1, 6, 6))])
@pytest.mark.parametrize("rate", [0.15, 0.65])
def test_masks_are_independent_and_zero_with_the_given_probability(mask, shape, rate):
    loss, *_ = case(mask=mask, rate=rate)
    torch.manual_seed(1)
    drawn = loss.draw(torch.zeros(64, 50, 6, 6))
    assert drawn.shape == shape and set(drawn.unique().tolist()) == {0.0, 1.0}
    assert binomtest(int((drawn == 0).sum()), drawn.numel(), rate).pvalue > 1e-3
    flat = drawn.flatten(1)
    neighbours = ((flat[:, 1:] == 0) & (flat[:, :-1] == 0)).sum()
    assert binomtest(int(neighbours), flat[:, 1:].numel(), rate**2).pvalue > 1e-3
    assert len({tuple(row) for row in flat.tolist()}) == 64  # each image has its own
    assert not torch.equal(drawn, loss.draw(torch.zeros(64, 50, 6, 6)))  # and each step


def test_what_is_masked_has_no_gradient():
    loss, student, teacher, batch = case((5, 4, 4))
    drawn = torch.tensor([1.0, 0, 1, 1, 0]).double()[None, :, None, None].expand(3, 5, 1, 1)
    loss.draw = lambda x: drawn
    loss(student, teacher, batch).backward()
    assert torch.equal(student.last_map.grad.abs().sum((2, 3)) > 0, drawn[:, :, 0, 0] > 0)


def test_a_saved_random_state_draws_the_same_masks():
    loss, student, teacher, batch = case()
    loss(student, teacher, batch)
    random = torch.get_rng_state()
    values = [loss(student, teacher, batch).item() for _ in range(3)]
    torch.manual_seed(99)
    torch.set_rng_state(random)
    assert [loss(student, teacher, batch).item() for _ in range(3)] == values
    assert len(set(values)) == 3


def test_maps_of_different_sizes_are_refused():
    expected = "needs equal sizes of the last maps, found 2 x 2 for the student and 4 x 4 for the teacher"
    with pytest.raises(ValueError, match=expected):
        MGD(Pair((), (), (3, 2, 2), (5, 4, 4)))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mask": "image"}, "mask: found 'image', expected channel or pixel"),
        ({"rate": 1.0}, "rate: found 1.0, expected 0 to below 1"),
        ({"rate": -0.1}, "rate: found -0.1, expected 0 to below 1"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        case(**options)


def test_entry():
    method = distiller_dict["mgd"]
    assert (method.gamma, method.alpha, method.beta) == (1, 0, 7e-5)  # MGD's repository, for ImageNet
    assert method.options == {"mask": "channel", "rate": 0.15}
    assert method.last_map and method.trainable and method.source.startswith("assumed")
    assert len(method.pairs) == 8 + 3 and ("ResNet50", "vgg8") in method.pairs  # three of ImageNet
