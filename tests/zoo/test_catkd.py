"""CAT-KD against its definition in loops over images and classes."""

import numpy as np
import pytest
import torch
from reference_c import CLASSES, array, assert_descends, assert_finite, assert_gradient, average, make_pair, weights
from reference_c import make_case as case
from torch import nn

from distiller_zoo import Output, Pair, distiller_dict


def make_case(map_s=(5, 8, 8), map_t=(10, 4, 4), **options):
    pair = make_pair(map_s=map_s, map_t=map_t)
    return pair, *case("catkd", pair, **options)


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
    pair, loss, student, teacher, batch = make_case(resolution=resolution, form=form)
    maps_s = attention(student.last_map, pair.classifier_s, resolution, form)
    maps_t = attention(teacher.last_map, pair.classifier_t, resolution, form)
    assert loss(student, teacher, batch).item() == pytest.approx(((maps_s - maps_t) ** 2).mean())


def test_raw_maps_by_hand():
    """One image, one channel, one class, weight 2 and bias 1: maps 2 x + 1, pooled to 7 and 3."""
    classifier = nn.Linear(1, 1)
    nn.init.constant_(classifier.weight, 2)
    nn.init.constant_(classifier.bias, 1)
    loss = distiller_dict["catkd"].loss(
        Pair((), (), classifier_s=classifier, classifier_t=classifier), form="raw", resolution=1
    )
    student, teacher = torch.tensor([[[[2.0, 4.0]]]]), torch.tensor([[[[1.0]]]])
    assert loss(Output([], None, student), Output([], None, teacher), None).item() == 16


def test_the_mean_of_an_activation_map_is_the_logit():
    pair, loss, student, *_ = make_case(resolution=1)
    signs = loss.attention(student.last_map, pair.classifier_s).squeeze(2)  # one pixel: normalised to the sign
    assert torch.equal(signs, pair.classifier_s(student.last_map.mean((2, 3))).sign())


def test_a_teacher_with_itself_and_scaled_activations_has_no_loss():
    pair, loss, _, teacher, batch = make_case()
    classifier = nn.Linear(10, CLASSES).double()
    classifier.weight.data, classifier.bias.data = 7 * pair.classifier_t.weight.data, 7 * pair.classifier_t.bias.data
    loss = distiller_dict["catkd"].loss(make_pair(classifier_s=classifier))
    assert loss(teacher, teacher, batch).item() == pytest.approx(0, abs=1e-20)


def test_the_students_classifier_learns_and_is_not_the_losss_own():
    pair, loss, student, teacher, batch = make_case()
    loss(student, teacher, batch).backward()
    assert pair.classifier_s.weight.grad.abs().sum() > 0 and pair.classifier_t.weight.grad is None
    assert not list(loss.parameters()) and not loss.state_dict()
    leaves = (student.last_map.requires_grad_(), pair.classifier_s.weight, pair.classifier_s.bias)
    assert torch.autograd.gradcheck(lambda *_: loss(student, teacher, batch), leaves)


def test_gradient():
    assert_gradient(*make_case()[1:])


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("make", [torch.randn, torch.zeros, torch.ones])
def test_any_batch_has_a_finite_loss(count, make):
    assert_finite(*make_case(count=count, make=make)[1:])


def test_activations_of_zero_have_a_finite_loss():
    pair, loss, student, teacher, batch = make_case(make=torch.zeros)
    nn.init.zeros_(pair.classifier_s.bias)
    assert_finite(loss, student, teacher, batch)


def test_maps_smaller_than_the_resolution():
    _, loss, *outputs = make_case(map_s=(5, 2, 2), map_t=(10, 1, 1), resolution=4)
    assert_finite(loss, *outputs)


def test_it_descends():
    assert_descends(*make_case()[1:])


def test_entry():
    method = distiller_dict["catkd"]
    assert weights("catkd") == (1, 0, 15) and not method.trainable
    assert method.options == {"form": "normalised", "resolution": 2}
    published = {  # CAT-KD's configurations
        ("resnet56", "resnet20"): 0.7,
        ("resnet110", "resnet32"): 1.8,
        ("wrn_40_2", "wrn_40_1"): 1.5,
        ("wrn_40_2", "wrn_16_2"): 12,
        ("vgg13", "vgg8"): 4.5,
        ("vgg13", "MobileNetV2"): 15,
        ("resnet32x4", "resnet8x4"): 15,
        ("ResNet50", "MobileNetV2"): 40,
        ("wrn_40_2", "ShuffleV1"): 80,
        ("resnet32x4", "ShuffleV1"): 600,
        ("resnet32x4", "ShuffleV2"): 600,
    }
    assert {pair: special["beta"] for pair, special in method.by_pair.items()} == published
    for (teacher, student), beta in published.items():
        form = "raw" if teacher[:3] == student[:3] else "normalised"  # of one family: IF_NORMALIZE is False there
        resolution = 4 if student.startswith("Shuffle") else 2
        source = "published: CAT-KD's configurations"
        assert method.settings(teacher, student) == (beta, {"form": form, "resolution": resolution}, source)
    assert method.settings("vgg13", "resnet20")[2].startswith("assumed")
