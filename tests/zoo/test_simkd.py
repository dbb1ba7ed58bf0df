"""SimKD: the loss by formula, and the student that is deployed, on networks as small as can be."""

import copy

import numpy as np
import pytest
import torch
from support.layers import array, average, kinds, through
from support.zoo import CLASSES, make_pair
from torch import nn

from distiller_zoo import Output, classifier, distiller_dict, forward
from distiller_zoo.simkd import SimKDStudent


class Network(nn.Module):
    """A convolution, batch norm and ReLU, the pooling, and the classifier."""

    def __init__(self, width, stride):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, stride=stride, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x, is_feat=False, preact=False):
        stem = self.conv(x)
        before = self.bn(stem)
        pooled = self.pool(before.relu())
        logits = self.fc(pooled)
        return ([stem, before if preact else before.relu(), pooled], logits) if is_feat else logits


def make_student(stride_s=1, stride_t=2):
    """(SimKD's student, the network in it as it was, the teacher), in float64, for images of 8 x 8 pixels."""
    torch.manual_seed(0)
    student, teacher = Network(5, stride_s).double(), Network(6, stride_t).double()
    size_s, size_t = 8 // stride_s, 8 // stride_t
    pair = make_pair(map_s=(5, size_s, size_s), map_t=(6, size_t, size_t), classifier_t=teacher.fc)
    return SimKDStudent(copy.deepcopy(student), pair).double(), student, teacher


def images(count=4):
    torch.manual_seed(1)
    return torch.randn(count, 3, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize("size_s, size_t", [(4, 4), (2, 4), (1, 4)])
def test_formula(size_s, size_t):
    torch.manual_seed(0)
    s, t = torch.randn(3, 5, size_s, size_s), torch.randn(3, 5, size_t, size_t)
    value = distiller_dict["simkd"].loss(make_pair())(Output([], None, s), Output([], None, t), None)
    assert value.item() == pytest.approx(((array(s) - average(array(t), size_s)) ** 2).mean())
    assert distiller_dict["simkd"].loss(make_pair())(Output([], None, t), Output([], None, t), None) == 0


@pytest.mark.parametrize("stride_s, stride_t", [(1, 2), (2, 1), (1, 1)])
@pytest.mark.parametrize("preact", [False, True])
def test_the_student_is_body_projector_and_the_teachers_classifier(stride_s, stride_t, preact):
    simkd, body, teacher = make_student(stride_s, stride_t)
    with torch.no_grad():
        expected, _, last_map = forward(body, images(), preact, last_map=True)
        features, logits, projected = forward(simkd, images(), preact, last_map=True)
    size = 8 // max(stride_s, stride_t)
    by_hand = through(average(array(last_map), size), simkd.projector)
    assert projected.shape == (4, 6, size, size)
    assert np.allclose(array(projected), by_hand)
    assert np.allclose(array(features[-1]), by_hand.mean((2, 3)))
    assert np.allclose(array(logits), by_hand.mean((2, 3)) @ array(teacher.fc.weight).T + array(teacher.fc.bias))
    assert all(torch.equal(*each) for each in zip(features[:-1], expected[:-1], strict=True))
    assert torch.equal(simkd(images()), logits)


def test_the_projector_is_half_as_wide_inside():
    simkd, *_ = make_student()
    convolutions = [m for m in simkd.projector if isinstance(m, nn.Conv2d)]
    assert [tuple(m.weight.shape) for m in convolutions] == [(3, 5, 1, 1), (3, 3, 3, 3), (6, 3, 1, 1)]
    assert kinds(simkd.projector) == [x for name in ("conv1", "conv3", "conv1") for x in (name, "BatchNorm", "ReLU")]


def test_the_teachers_classifier_is_a_copy_that_is_not_trained_and_the_students_own_is_gone():
    simkd, _, teacher = make_student()
    name, last = classifier(simkd)
    assert name == "classifier" and last is simkd.classifier and last is not teacher.fc
    assert not [name for name in simkd.state_dict() if name.startswith("body.fc")]
    trained = {name for name, p in simkd.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"body", "projector"}
    assert teacher.fc.weight.requires_grad
    simkd(images()).sum().backward()
    assert last.weight.grad is None and teacher.fc.weight.grad is None
    assert simkd.body.conv.weight.grad is not None


@pytest.mark.parametrize("count", [1, 4])
def test_short_batches_train(count):
    simkd, _, teacher = make_student(8, 8)  # maps of one pixel
    simkd.body.eval()  # its own batch norm does not take one value a channel
    features, logits, last_map = forward(simkd, images(count), last_map=True)
    target = Output(*forward(teacher.eval(), images(count), last_map=True))
    value = distiller_dict["simkd"].loss(make_pair())(Output(features, logits, last_map), target, None)
    value.backward()
    assert value.isfinite()
    assert all(p.grad.isfinite().all() for p in simkd.projector.parameters())


def test_its_student_is_part_of_the_entry():
    method = distiller_dict["simkd"]
    assert method.student is SimKDStudent and method.features == ()
