"""DKD against its formula with SciPy, and against KD, which it decomposes."""

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from support.layers import array
from support.zoo import CLASSES, make_case

from distiller_zoo import Batch, Output, Pair, distiller_dict
from distiller_zoo.method import of_imagenet

SIX = [("vgg13", "vgg8"), ("vgg13", "MobileNetV2"), ("wrn_40_2", "wrn_16_2"), ("wrn_40_2", "wrn_40_1")]
NCKD = {("resnet56", "resnet20"): 2, ("resnet110", "resnet32"): 2} | dict.fromkeys(SIX, 6)  # mdistiller's


def divergences(student, teacher, labels, T):
    """(TCKD, NCKD, KD, the teacher's probability of the label) of each image, all without T^2."""
    for s, t, label in zip(array(student.logits), array(teacher.logits), labels.tolist(), strict=True):
        p_s, p_t = softmax(s / T), softmax(t / T)
        tckd = rel_entr([p_t[label], 1 - p_t[label]], [p_s[label], 1 - p_s[label]]).sum()
        other_s, other_t = (np.delete(p, label) / (1 - p[label]) for p in (p_s, p_t))
        yield tckd, rel_entr(other_t, other_s).sum(), rel_entr(p_t, p_s).sum(), p_t[label]


@pytest.mark.parametrize(("tckd", "nckd"), [(1.0, 8.0), (0.0, 1.0), (1.0, 0.0), (0.3, 2.0)])
def test_formula(tckd, nckd):
    case = make_case("dkd", tckd=tckd, nckd=nckd)
    found = divergences(case.student, case.teacher, case.batch.labels, T=4)
    expected = 16 * np.mean([tckd * target + nckd * other for target, other, *_ in found])
    assert case.value().item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("T", [1.0, 4.0])
def test_kd_is_tckd_and_nckd_weighted_by_the_teachers_doubt(T):
    """KD = TCKD + (1 - p_t) NCKD, image by image."""
    case = make_case("dkd")
    labels = case.batch.labels
    for i, (_, _, kd, p_t) in enumerate(divergences(case.student, case.teacher, labels, T)):
        loss = distiller_dict["dkd"].loss(Pair((), (), kd_T=T), tckd=1.0, nckd=1 - p_t)
        one = [Output([], each.logits[i : i + 1]) for each in (case.student, case.teacher)]
        assert loss(*one, Batch(labels[i : i + 1], None)).item() == pytest.approx(T**2 * kd, rel=1e-10)


def test_vanishes_for_logits_that_differ_by_a_constant():
    case = make_case("dkd")
    assert abs(case.loss(Output([], case.teacher.logits + torch.arange(4)[:, None]), case.teacher, case.batch)) < 1e-12


def test_nckd_does_not_read_the_labels_logits():
    case = make_case("dkd", tckd=0.0)
    (gradient,) = torch.autograd.grad(case.value(), case.inputs)
    assert (gradient.gather(1, case.batch.labels[:, None]) == 0).all() and (gradient != 0).sum() == 4 * (CLASSES - 1)


def test_with_two_classes_nothing_but_kd_is_left():
    case = make_case("dkd")
    student, teacher = (Output([], each.logits[:, :2]) for each in (case.student, case.teacher))
    batch = Batch(case.batch.labels % 2, None)
    kd = [each[2] for each in divergences(student, teacher, batch.labels, T=4)]
    assert case.loss(student, teacher, batch).item() == pytest.approx(16 * np.mean(kd), rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_of_any_size(dtype):
    case = make_case("dkd", dtype=dtype)
    large = (1e4 * case.student.logits).detach().requires_grad_()
    value = case.loss(Output([], large), Output([], 1e4 * case.teacher.logits), case.batch)
    value.backward()
    assert value.isfinite() and large.grad.isfinite().all()


def test_weights_of_single_pairs():
    method = distiller_dict["dkd"]
    assert {pair for pair in method.by_pair if not of_imagenet(*pair)} == NCKD.keys()
    for pair, nckd in (NCKD | {("resnet32x4", "ShuffleV1"): 8}).items():
        beta, options, source = method.settings(*pair)
        assert (beta, options) == (1, {"tckd": 1, "nckd": nckd}) and source.startswith("published: mdistiller")


def test_on_standardised_logits_both_weights_are_9_times_as_large():
    """logit-standardization-KD's tools/train.py --kd-weight 9, for pairs with and without a weight of their own."""
    method = distiller_dict["dkd"].on_standardized_logits()
    for pair, nckd in (NCKD | {("resnet32x4", "ShuffleV1"): 8}).items():
        beta, options, source = method.settings(*pair)
        assert (beta * options["tckd"], beta * options["nckd"]) == (9, 9 * nckd)
        assert source == "published: logit-standardization-KD's README"
    assert (method.gamma, method.alpha) == (1, 0)
