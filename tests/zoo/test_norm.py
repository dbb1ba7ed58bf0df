"""NORM: the loss by formula, the student with the transform in it, and its merger into the classifier."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from distiller_zoo import Batch, Output, Pair, classifier, distiller_dict, forward
from distiller_zoo.norm import NORMStudent
from models import create_model, feature_shapes, fold_batchnorm, map_shape

NORM = distiller_dict["norm"].loss
IMAGES = 6


def array(x):
    return x.detach().double().numpy()


def case(shape_s=(12, 2, 2), shape_t=(4, 2, 2), count=3, make=torch.randn, **options):
    """(loss, student, teacher, batch) in float64; shape_s is that of the expanded map."""
    torch.manual_seed(0)
    pair = Pair(((3, 4, 4), shape_s, (5,)), ((3, 4, 4), shape_t, (4,)))
    loss = NORM(pair, **options).double()
    s, t = (make(count, *shape, dtype=torch.float64) for shape in (shape_s, shape_t))
    return loss, Output([None, s.requires_grad_(), None], None), Output([None, t, None], None), Batch(None, None)


@pytest.mark.parametrize("segments", [1, 3, 8])
def test_formula(segments):
    loss, student, teacher, batch = case((4 * segments, 2, 2))
    s, t = array(student.features[1]), array(teacher.features[1])
    expected = sum(((s[:, 4 * i : 4 * i + 4] - t) ** 2).mean() for i in range(segments))
    assert loss(student, teacher, batch).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("size_s, size_t", [(2, 4), (1, 4), (4, 2)])
def test_the_larger_map_is_max_pooled(size_s, size_t):
    loss, student, teacher, batch = case((8, size_s, size_s), (4, size_t, size_t))
    small, pooled = min(size_s, size_t), []
    for x in (array(student.features[1]), array(teacher.features[1])):
        blocks = x.reshape(*x.shape[:2], small, x.shape[2] // small, small, x.shape[3] // small)
        pooled.append(blocks.max(axis=(3, 5)))
    s, t = pooled
    expected = ((s[:, :4] - t) ** 2).mean() + ((s[:, 4:] - t) ** 2).mean()
    assert loss(student, teacher, batch).item() == pytest.approx(expected, rel=1e-10)


def test_copies_of_the_teachers_map_have_no_loss():
    loss, student, teacher, batch = case((12, 2, 2))
    copies = torch.cat([teacher.features[1]] * 3, dim=1)
    assert loss(student._replace(features=[None, copies, None]), teacher, batch).item() == 0


def test_standardised_logits_have_mean_0_and_deviation_two_and_a_half():
    loss, *_ = case()
    logits = torch.tensor([[1.0, 2.0, 6.0], [-3.0, 0.0, 3.0], [5.0, 5.0, 5.0]]).double()
    x = logits.numpy()
    expected = [2.5 * (row - row.mean()) / (np.sqrt(((row - row.mean()) ** 2).mean()) + 1e-7) for row in x]
    assert np.allclose(array(loss.rescale(logits)), expected)
    assert torch.equal(loss.rescale(logits)[:2].argmax(dim=1), logits[:2].argmax(dim=1))
    assert torch.equal(case(logits="raw")[0].rescale(logits), logits)
    equal = logits[2:].clone().requires_grad_()
    loss.rescale(equal)[0, 0].backward()
    assert equal.grad.isfinite().all()


def pair_of(teacher, student):
    """Pair for the networks of two architectures, and the student."""
    torch.manual_seed(0)
    teacher, student = create_model(teacher, 7), create_model(student, 7)
    shapes = [feature_shapes(network) for network in (student, teacher)]
    return Pair(*shapes, map_shape(student), map_shape(teacher), classifier_t=classifier(teacher)[1]), student


def trained(network):
    """The network in eval mode, with batch norms that are not the identity."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(images())
    return network.eval()


def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(IMAGES, 3, 32, 32, generator=generator)


def transformed(x, transform):
    """x + contract(expand(x)), with the running statistics, and expand(x), as matrices act on channels."""
    found = array(x)
    for convolution, norm in (transform.expand, transform.contract):
        found = np.einsum("oc,bchw->bohw", array(convolution.weight)[..., 0, 0], found)
        mean, variance, scale, shift = (
            array(v)[:, None, None] for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        found = (found - mean) / np.sqrt(variance + norm.eps) * scale + shift
        if norm is transform.expand[1]:
            expanded = found
    return array(x) + found, expanded


@pytest.mark.parametrize("preact", [False, True])
def test_the_student_is_the_network_with_the_transform_before_the_pooling(preact):
    pair, network = pair_of("resnet20", "resnet8")
    student = trained(NORMStudent(copy.deepcopy(network), pair, segments=3))
    plain = copy.deepcopy(student.body)
    plain.pool = student.body.pool.following
    with torch.no_grad():
        before, _, last_map = forward(plain, images(), preact, last_map=True)
        features, logits = student(images(), is_feat=True, preact=preact)
        assert torch.equal(student(images()), logits)
    changed, expanded = transformed(last_map, student.body.pool)
    assert len(features) == len(before) + 1
    assert all(torch.equal(*each) for each in zip(features[:-2], before[:-1], strict=True))
    assert features[-2].shape == (IMAGES, 3 * 64, 8, 8)
    assert np.allclose(array(features[-2]), expanded, atol=1e-4)
    assert np.allclose(array(features[-1]), changed.mean((2, 3)), atol=1e-4)
    linear = network.fc
    assert linear.weight.shape == (7, 64) and not [m for m in student.modules() if m is network.fc]
    expected = changed.mean((2, 3)) @ array(plain.fc.weight).T + array(plain.fc.bias)
    assert np.allclose(array(logits), expected, atol=1e-4)


def test_in_a_wide_resnet_it_comes_before_the_last_batch_norm():
    pair, network = pair_of("wrn_16_2", "wrn_16_1")
    student = trained(NORMStudent(network, pair, before="bn1"))
    plain = copy.deepcopy(student.body)
    plain.bn1 = student.body.bn1.following
    with torch.no_grad():
        features, logits = student(images(), is_feat=True)
        changed, expanded = transformed(plain(images(), is_feat=True)[0][-2], student.body.bn1)
        pooled = plain.bn1(torch.from_numpy(changed).float()).relu().mean((2, 3))
    assert features[-2].shape == (IMAGES, 8 * 128, 8, 8) and np.allclose(array(features[-2]), expanded, atol=1e-4)
    assert np.allclose(array(features[-1]), array(pooled), atol=1e-4)
    assert np.allclose(array(logits), array(plain.fc(pooled)), atol=1e-4)


ARCHITECTURES = ("resnet8", "vgg8", "wrn_16_1", "MobileNetV2", "ShuffleV1", "ShuffleV2")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_merged_into_the_classifier_the_logits_are_equal(arch):
    pair, network = pair_of("resnet20", arch)
    names = list(network.state_dict())
    student = trained(NORMStudent(network, pair, segments=2))
    state = copy.deepcopy(student.state_dict())
    merged = student.merged()
    assert list(merged.state_dict()) == names  # the plain network, which loads everywhere
    with torch.no_grad():
        expected, found = student(images()), merged.eval()(images())
        without = copy.deepcopy(merged)
        classifier(without)[1].load_state_dict(classifier(student)[1].state_dict())
        assert (without(images()) - expected).abs().max() > 0.05 * expected.abs().max()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert all(torch.equal(x, state[name]) for name, x in student.state_dict().items())


def test_elsewhere_it_cannot_be_merged():
    pair, network = pair_of("wrn_16_2", "wrn_16_1")
    with pytest.raises(ValueError, match="before 'bn1' cannot be merged into the classifier, only at 'pool'"):
        NORMStudent(network, pair, before="bn1").merged()


@pytest.mark.parametrize("before", ["pool", "bn1"])
def test_a_deployed_student_loads_and_can_teach(before):
    pair, network = pair_of("wrn_16_2", "wrn_16_1")
    student = trained(NORMStudent(copy.deepcopy(network), pair, before=before))
    other = NORMStudent(network, pair, before=before)
    other.load_state_dict(student.state_dict())
    features, _, last_map = forward(other.eval(), images(), last_map=True)
    torch.testing.assert_close(last_map.mean((2, 3)), features[-1])
    assert map_shape(student) == map_shape(network) == tuple(last_map.shape[1:])
    folded = fold_batchnorm(student)
    with torch.no_grad():
        expected, logits = student(images(), is_feat=True)
        for each in (other, folded):
            features, found = each(images(), is_feat=True)
            torch.testing.assert_close(found, logits, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(features[-2], expected[-2], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "student", [("resnet20", "resnet8"), ("wrn_16_2", "wrn_16_1"), ("wrn_16_2", "ShuffleV1"), ("vgg13", "MobileNetV2")]
)
def test_loss_and_student_fit_together(student):
    """Gradients reach the transform's first half through the loss, its second through the logits alone."""
    method = distiller_dict["norm"]
    pair, network = pair_of(*student)
    deployed = method.make_student(network, pair, method.options)
    loss = method.make_loss(Pair(feature_shapes(deployed), pair.shapes_t), method.options)
    features, _ = deployed.train()(images(), is_feat=True)
    target = torch.rand(IMAGES, *pair.shapes_t[-2])
    loss(Output(method.select(features), None), Output([None, target, None], None), None).backward()
    assert loss.segments == 8
    transform = deployed.body.pool
    assert all(p.grad.abs().sum() > 0 for p in (transform.expand[0].weight, transform.expand[1].bias))
    assert transform.contract[0].weight.grad is None and classifier(deployed)[1].weight.grad is None


def test_what_it_is_not_defined_for_is_refused():
    with pytest.raises(ValueError, match="one's size is a multiple of the other's, found 3 and 4"):
        case((8, 3, 3), (4, 4, 4))
    with pytest.raises(ValueError, match="logits: found 'z', expected standardised or raw"):
        case(logits="z")
    pair, network = pair_of("resnet20", "resnet8")
    with pytest.raises(ValueError, match="before: found 'bn7', which is no submodule of the student"):
        NORMStudent(network, pair, before="bn7")
    with pytest.raises(ValueError, match="segments: found 0, expected more than 0"):
        NORMStudent(network, pair, segments=0)
    with pytest.raises(ValueError, match="before: found a submodule that is given 3 channels, expected 64"):
        NORMStudent(network, pair, before="conv1")(images())


# NORM's script for CIFAR-100, which counts epochs from 0.
PUBLISHED = [
    (0, 0.1),
    (9, 0.1),
    (10, 0.5),
    (19, 0.5),
    (20, 1),
    (179, 1),
    (180, 0.5),
    (209, 0.5),
    (210, 0.1),
    (239, 0.1),
]


def test_entry():
    method = distiller_dict["norm"]
    assert (method.gamma, method.alpha, method.beta) == (0.1, 0, 1)  # NORM's README
    assert method.options == {"logits": "standardised", "segments": 8, "before": "pool"}
    assert method.student is NORMStudent and not method.trainable and not list(case()[0].parameters())
    for epoch, factor in PUBLISHED:
        assert method.factor("other", epoch + 1, 240) == factor and method.factor("kd", epoch + 1, 240) == 1
    assert [method.factor("other", epoch, 24) for epoch in (1, 2, 3, 18, 19, 21, 22, 24)] == [
        *(0.1, 0.5, 1, 1, 0.5, 0.5, 0.1, 0.1),
    ]
    assert method.settings("resnet32x4", "resnet8x4")[2].startswith("published")
    assert method.settings("resnet56", "resnet20")[2].startswith("assumed")
    _, options, source = method.settings("wrn_40_2", "wrn_40_1")
    assert options["before"] == "bn1" and source.startswith("assumed")
