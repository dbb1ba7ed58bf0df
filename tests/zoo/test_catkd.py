"""CAT-KD against its definition in loops over images and classes."""

import numpy as np
import pytest
import torch
from support.layers import array, average
from support.zoo import CLASSES, make_case, make_pair
from torch import nn

from distiller_zoo import Output, Pair, distiller_dict
from distiller_zoo.method import of_imagenet


def attention(last_map, classifier, resolution, form):
    """Activation maps of all classes at every pixel, then averaged on the cells; normalised: each over its norm."""
    x, weight, bias = array(last_map), array(classifier.weight), array(classifier.bias)
    maps = np.zeros((len(x), CLASSES, *x.shape[2:]))
    for b, k, i, j in np.ndindex(maps.shape):
        maps[b, k, i, j] = weight[k] @ x[b, :, i, j] + bias[k]
    pooled = average(maps, resolution)
    return pooled if form == "raw" else pooled / np.sqrt((pooled**2).sum((2, 3), keepdims=True))


@pytest.mark.parametrize("form", ["normalised", "raw"])
@pytest.mark.parametrize("resolution", [1, 2, 4])
def test_formula(resolution, form):
    pair = make_pair(map_s=(5, 8, 8), map_t=(7, 4, 4))
    case = make_case("catkd", pair, resolution=resolution, form=form)
    maps_s = attention(case.student.last_map, pair.classifier_s, resolution, form)
    maps_t = attention(case.teacher.last_map, pair.classifier_t, resolution, form)
    assert case.value().item() == pytest.approx(((maps_s - maps_t) ** 2).mean())


def test_raw_maps_by_hand():
    """One image, one channel, one class, weight 2 and bias 1: maps 2 x + 1, pooled to 7 and 3."""
    classifier = nn.Linear(1, 1)
    nn.init.constant_(classifier.weight, 2)
    nn.init.constant_(classifier.bias, 1)
    pair = Pair((), (), classifier_s=classifier, classifier_t=classifier)
    loss = distiller_dict["catkd"].loss(pair, form="raw", resolution=1)
    student, teacher = torch.tensor([[[[2.0, 4.0]]]]), torch.tensor([[[[1.0]]]])
    assert loss(Output([], None, student), Output([], None, teacher), None).item() == 16


def test_the_mean_of_an_activation_map_is_the_logit():
    case = make_case("catkd", resolution=1, form="raw")
    logits = case.pair.classifier_s(case.student.last_map.mean((2, 3)))
    torch.testing.assert_close(case.loss.attention(case.student.last_map, case.pair.classifier_s).squeeze(2), logits)


@pytest.mark.parametrize("form", ["normalised", "raw"])
def test_the_size_of_a_networks_activations_is_seen_in_raw_maps_alone(form):
    pair = make_pair()
    scaled = nn.Linear(pair.map_t[0], CLASSES).double()
    scaled.weight.data, scaled.bias.data = 7 * pair.classifier_t.weight.data, 7 * pair.classifier_t.bias.data
    case = make_case("catkd", make_pair(classifier_s=scaled, classifier_t=pair.classifier_t), form=form)
    assert (case.loss(case.teacher, case.teacher, case.batch) > 0.1) == (form == "raw")


def test_the_students_classifier_learns_and_is_not_the_losss_own():
    case = make_case("catkd")
    classifier = case.pair.classifier_s
    assert not list(case.loss.parameters()) and not case.loss.state_dict()
    assert torch.autograd.gradcheck(lambda *_: case.value(), (classifier.weight, classifier.bias))
    case.value().backward()
    assert classifier.weight.grad.any() and case.pair.classifier_t.weight.grad is None


def test_activations_of_zero_have_a_finite_loss():
    case = make_case("catkd", fill=(0, 0))
    nn.init.zeros_(case.pair.classifier_s.bias)
    value = case.value()
    value.backward()
    assert value.isfinite() and case.student.last_map.grad.isfinite().all()


def test_maps_smaller_than_the_resolution():
    case = make_case("catkd", make_pair(map_s=(5, 2, 2), map_t=(7, 1, 1)), resolution=4)
    assert case.value().isfinite()


def test_weights_and_forms_of_single_pairs():
    """CAT-KD's configurations; IF_NORMALIZE is False for the six pairs of one family."""
    published = {
        ("resnet56", "resnet20"): (0.7, "raw", 2),
        ("resnet110", "resnet32"): (1.8, "raw", 2),
        ("wrn_40_2", "wrn_40_1"): (1.5, "raw", 2),
        ("wrn_40_2", "wrn_16_2"): (12, "raw", 2),
        ("vgg13", "vgg8"): (4.5, "raw", 2),
        ("resnet32x4", "resnet8x4"): (15, "raw", 2),
        ("vgg13", "MobileNetV2"): (15, "normalised", 2),
        ("ResNet50", "MobileNetV2"): (40, "normalised", 2),
        ("wrn_40_2", "ShuffleV1"): (80, "normalised", 4),
        ("resnet32x4", "ShuffleV1"): (600, "normalised", 4),
        ("resnet32x4", "ShuffleV2"): (600, "normalised", 4),
    }
    method = distiller_dict["catkd"]
    assert {pair for pair in method.by_pair if not of_imagenet(*pair)} == published.keys()
    for pair, (beta, form, resolution) in published.items():
        options = {"form": form, "resolution": resolution}
        assert method.settings(*pair) == (beta, options, "published: CAT-KD's configurations")
    assert method.settings("vgg13", "resnet20")[2].startswith("assumed")
