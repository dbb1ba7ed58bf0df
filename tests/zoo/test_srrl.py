"""SRRL against its definition in NumPy."""

import pytest
import torch
from reference_c import (
    array,
    assert_descends,
    assert_finite,
    assert_gradient,
    kinds,
    make_case,
    make_pair,
    through,
    weights,
)
from torch import nn

from distiller_zoo import distiller_dict


def test_formula():
    pair = make_pair()
    loss, student, teacher, batch = make_case("srrl", pair)
    connected = through(array(student.features[-1])[:, :, None, None], loss.connector)[:, :, 0, 0]
    assert kinds(loss.connector) == ["conv1", "BatchNorm", "ReLU"]
    logits = connected @ array(pair.classifier_t.weight).T + array(pair.classifier_t.bias)
    expected = ((connected - array(teacher.features[-1])) ** 2).mean() + ((logits - array(teacher.logits)) ** 2).mean()
    assert loss(student, teacher, batch).item() == pytest.approx(expected)


def test_a_student_whose_connected_feature_is_the_teachers_has_no_loss():
    pair = make_pair()
    loss, student, teacher, batch = make_case("srrl", pair)
    vectors = loss.connector(student.features[-1][:, :, None, None]).flatten(1)
    teacher = teacher._replace(features=[vectors], logits=pair.classifier_t(vectors))
    assert loss(student, teacher, batch).item() == pytest.approx(0, abs=1e-12)


def test_the_teachers_classifier_stands_still_and_is_not_saved():
    pair = make_pair()
    loss, student, teacher, batch = make_case("srrl", pair)
    assert not [name for name in loss.state_dict() if not name.startswith("connector.")]
    before = loss(student, teacher, batch)
    before.backward()
    assert pair.classifier_t.weight.grad is None
    nn.init.zeros_(pair.classifier_t.weight)
    assert torch.equal(before, loss(student, teacher, batch))


def test_gradient():
    assert_gradient(*make_case("srrl"))


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("make", [torch.randn, torch.zeros, torch.ones])
def test_any_batch_has_a_finite_loss(count, make):
    assert_finite(*make_case("srrl", count=count, make=make))


def test_it_descends():
    pair = make_pair()
    loss, student, teacher, batch = make_case("srrl", pair, make=torch.rand)  # positive, as what comes out of a ReLU
    nn.init.ones_(loss.connector[1].bias)  # so that no channel starts dead
    teacher = teacher._replace(logits=pair.classifier_t(teacher.features[-1]).detach())
    assert_descends(loss, student, teacher, batch)


def test_entry():
    assert weights("srrl") == (1, 1, 1)  # SimKD's scripts
    assert distiller_dict["srrl"].trainable and not distiller_dict["srrl"].options
