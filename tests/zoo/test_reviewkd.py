"""ReviewKD against its definition in NumPy: attention-based fusion, hierarchical context loss, and their sum."""

import numpy as np
import pytest
import torch
from support.layers import array, average, kinds, through
from support.zoo import SHAPES_S, SHAPES_T, make_case, make_pair

from distiller_zoo import distiller_dict
from distiller_zoo.method import of_imagenet
from distiller_zoo.reviewkd import hierarchical_context_loss


def nearest(x, size):
    picked = np.arange(size) * x.shape[2] // size
    return x[:, :, picked][:, :, :, picked]


def context(s, t):
    """Weight 1 for the maps, then 1/2, 1/4, ... for every grid of 4, 2, 1 cells that is coarser than the map."""
    terms = [((s - t) ** 2).mean()]
    terms += [((average(s, n) - average(t, n)) ** 2).mean() for n in (4, 2, 1) if n < s.shape[2]]
    halves = 0.5 ** np.arange(len(terms))
    return halves @ terms / halves.sum()


@pytest.mark.parametrize("shapes", [(SHAPES_S, SHAPES_T), (SHAPES_T, SHAPES_S)])
def test_formula(shapes):
    case = make_case("reviewkd", make_pair(*shapes))
    levels_s, levels_t = ([array(x) for x in output.features[1:]] for output in (case.student, case.teacher))
    levels_s[-1], levels_t[-1] = levels_s[-1][:, :, None, None], levels_t[-1][:, :, None, None]
    expected, fused = 0.0, None
    for level in (3, 2, 1, 0):
        fusion = case.loss.fusions[level]
        x = through(levels_s[level], fusion.reduce)
        if level < 3:
            fused = nearest(fused, x.shape[2])
            weight = through(np.concatenate([x, fused], axis=1), fusion.attention)
            x = weight[:, [0]] * x + weight[:, [1]] * fused
        fused = x
        expected += context(through(nearest(x, levels_t[level].shape[2]), fusion.expand), levels_t[level])
    assert case.value().item() == pytest.approx(expected)


def test_convolutions_begin_as_published():
    """Kaiming uniform with a = 1: within +- sqrt(3 / fan-in), filled to its ends."""
    for fusion in distiller_dict["reviewkd"].loss(make_pair()).fusions:
        for part in (fusion.reduce, fusion.expand):
            bound = (3 / part[0].weight[0].numel()) ** 0.5
            assert 0.7 * bound < part[0].weight.abs().max() <= bound


@pytest.mark.parametrize("student", ["resnet18_imagenet", "mobilenetv1_imagenet"])
def test_imagenet_s_weights_belong_to_maps_before_the_relu_of_both(student):
    teacher = "resnet34_imagenet" if student.startswith("resnet") else "resnet50_imagenet"
    entry = distiller_dict["reviewkd"]
    assert (entry.preact_s, entry.preact_t) == (False, True)
    on_imagenet = entry.for_pair(teacher, student)
    assert (on_imagenet.preact_s, on_imagenet.preact_t, on_imagenet.warmup) == (True, True, 1)


def test_context_loss_by_hand():
    s, t = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]])
    # Pixels: (1 + 4) / 4. Of the grids only the single cell is coarser: its mean is 3 / 4. Weights 1 and 1 / 2.
    assert hierarchical_context_loss(s, t).item() == pytest.approx((5 / 4 + 9 / 16 / 2) / 1.5)
    assert hierarchical_context_loss(s[..., :1, :1], t[..., :1, :1]).item() == 1
    assert hierarchical_context_loss(t, t) == 0


@pytest.mark.parametrize("pooled, options, width", [(5, {}, 5), (700, {}, 512), (700, {"width": 256}, 256)])
def test_the_fused_maps_are_as_wide_as_the_pooled_vector_512_at_most(pooled, options, width):
    loss = distiller_dict["reviewkd"].loss(make_pair([*SHAPES_S[:-1], (pooled,)]), **options)
    for fusion in loss.fusions:
        assert kinds(fusion.reduce) == ["conv1", "BatchNorm"] and kinds(fusion.expand) == ["conv3", "BatchNorm"]
    assert {fusion.reduce[0].out_channels for fusion in loss.fusions} == {width}
    *fusing, deepest = loss.fusions
    assert all(kinds(fusion.attention) == ["conv1", "Sigmoid"] for fusion in fusing) and deepest.attention is None


def test_weights_of_single_pairs():
    """ReviewKD's script."""
    published = {
        ("resnet56", "resnet20"): 0.6,
        ("resnet110", "resnet32"): 1,
        ("wrn_40_2", "wrn_16_2"): 5,
        ("wrn_40_2", "wrn_40_1"): 5,
        ("wrn_40_2", "ShuffleV1"): 5,
        ("resnet32x4", "resnet8x4"): 5,
        ("resnet32x4", "ShuffleV1"): 5,
        ("resnet32x4", "ShuffleV2"): 8,
    }
    method = distiller_dict["reviewkd"]
    assert {pair for pair in method.by_pair if not of_imagenet(*pair)} == published.keys()
    for pair, beta in published.items():
        assert method.settings(*pair) == (beta, {"width": 512}, "published: ReviewKD's script")
    assert method.settings("vgg13", "vgg8")[2].startswith("assumed")
