"""SRRL against its definition in NumPy."""

import pytest
import torch
from support.layers import array, kinds, through
from support.zoo import make_case
from torch import nn


def test_formula():
    case = make_case("srrl")
    head, connector = case.pair.classifier_t, case.loss.connector
    connected = through(array(case.student.features[-1])[:, :, None, None], connector)[:, :, 0, 0]
    assert kinds(connector) == ["conv1", "BatchNorm", "ReLU"]
    logits = connected @ array(head.weight).T + array(head.bias)
    expected = ((connected - array(case.teacher.features[-1])) ** 2).mean()
    expected += ((logits - array(case.teacher.logits)) ** 2).mean()
    assert case.value().item() == pytest.approx(expected)


def test_a_student_whose_connected_feature_is_the_teachers_has_no_loss():
    case = make_case("srrl")
    vectors = case.loss.connector(case.student.features[-1][:, :, None, None]).flatten(1)
    case.teacher = case.teacher._replace(features=[vectors], logits=case.pair.classifier_t(vectors))
    assert case.value().item() == pytest.approx(0, abs=1e-12)


def test_the_teachers_classifier_is_frozen_and_not_saved():
    case = make_case("srrl")
    assert not [name for name in case.loss.state_dict() if not name.startswith("connector.")]
    before = case.value()
    nn.init.zeros_(case.pair.classifier_t.weight)
    assert torch.equal(before, case.value())
