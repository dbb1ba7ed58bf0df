"""MLKD against its definition in loops over images and classes, with SciPy."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax

from distiller_zoo import Batch, Output, Pair, distiller_dict

CLASSES = 5
MLKD = distiller_dict["mlkd"].loss


def case(count=4, make=torch.randn, kd_T=4.0, **options):
    """(loss, student, teacher, batch) in float64, with two views of each image."""
    torch.manual_seed(0)
    loss = MLKD(Pair((), (), kd_T=kd_T), **options).double()

    def output():
        weak, strong = (2 * make(count, CLASSES, dtype=torch.float64) for _ in range(2))
        return Output([], weak, strong=Output([], strong))

    student, teacher = output(), output()
    for view in (student, student.strong):
        view.logits.requires_grad_()
    return loss, student, teacher, Batch(torch.arange(count) % CLASSES, torch.arange(count))


def arrays(*outputs):
    return [output.logits.detach().numpy() for output in outputs]


def kl(s, t, T):
    """T^2 KL of each image."""
    return np.array([T**2 * rel_entr(softmax(b / T), softmax(a / T)).sum() for a, b in zip(s, t, strict=True)])


def inner_products(rows):
    return np.array([[sum(a * b for a, b in zip(one, other, strict=True)) for other in rows] for one in rows])


def of_batch(s, t, T):
    """For each image, the squared differences of its correlations with all images."""
    difference = inner_products(softmax(t / T, axis=1)) - inner_products(softmax(s / T, axis=1))
    return (difference**2).sum(axis=1)


def of_classes(s, t, T):
    difference = inner_products(softmax(t / T, axis=1).T) - inner_products(softmax(s / T, axis=1).T)
    return (difference**2).sum(axis=1)


def expected(student, teacher, labels, ce, kd, T0, form):
    s, t, s2, t2 = arrays(student, teacher, student.strong, teacher.strong)
    temperatures = [T0, 3, 5, 2, 6]
    p = softmax(t, axis=1)
    confident, summed = p.max(axis=1), p.sum(axis=0)
    images = [1.0 if c <= sorted(confident)[(len(confident) - 1) // 2] else 0.0 for c in confident]
    classes = [1.0 if c <= sorted(summed)[(CLASSES - 1) // 2] else 0.0 for c in summed]
    if form == "public":
        images, classes = [np.mean(images)] * len(images), [np.mean(classes)] * CLASSES
    total = sum((images * kl(s, t, T)).mean() for T in temperatures)
    total += sum((images * of_batch(s, t, T)).sum() / len(s) for T in temperatures)
    total += sum((classes * of_classes(s, t, T)).sum() / CLASSES for T in temperatures)
    total += sum(kl(s2, t2, T).mean() for T in temperatures[:3])
    total += sum(kl(s, t, T).mean() if form == "public" else kl(s2, t2, T).mean() for T in temperatures[3:])
    return ce * -np.mean([log_softmax(row)[label] for row, label in zip(s2, labels, strict=True)]) + kd * total


@pytest.mark.parametrize("form", ["public", "masked"])
@pytest.mark.parametrize("ce, kd", [(0.1, 0.9), (0.0, 1.0), (2.0, 0.5)])
@pytest.mark.parametrize("count, T0", [(4, 4.0), (5, 1.0)])
def test_formula(form, ce, kd, count, T0):
    loss, student, teacher, batch = case(count, kd_T=T0, ce=ce, kd=kd, form=form)
    wanted = expected(student, teacher, batch.labels.tolist(), ce, kd, T0, form)
    assert loss(student, teacher, batch).item() == pytest.approx(wanted, rel=1e-10)


def test_half_of_the_images_and_classes_are_masked_in_the_less_confident_half():
    loss, _, _, _ = case(form="masked")
    logits = torch.tensor([[9.0, 0, 0, 0], [0, 3, 0, 0], [1, 0, 0, 0], [0, 0, 0, 20]]).double()
    images, classes = loss.masks(logits)
    assert images.tolist() == [0, 1, 1, 0]
    summed = softmax(logits.numpy(), axis=1).sum(axis=0)
    assert classes.tolist() == [float(c <= np.sort(summed)[1]) for c in summed] and classes.sum() == 2
    images, classes = case(form="public")[0].masks(logits)
    assert images.tolist() == [0.5] * 4 and classes.tolist() == [0.5] * 4


def test_ties_are_masked_in():
    images, classes = case()[0].masks(torch.zeros(4, CLASSES))
    assert images.tolist() == [1] * 4 and classes.tolist() == [1] * CLASSES


def test_the_forms_differ_by_the_strong_view_at_2_and_6_where_nothing_is_masked_out():
    """With a teacher that is as sure of every image and class, the shares are 1."""
    values = []
    for form in ("public", "masked"):
        loss, student, teacher, batch = case(ce=0.0, kd=1.0, form=form)
        teacher = teacher._replace(logits=torch.zeros_like(teacher.logits))
        values.append(loss(student, teacher, batch).item())
    s, t, s2, t2 = arrays(student, teacher, student.strong, teacher.strong)
    gap = sum(kl(s2, t2, T).mean() - kl(s, t, T).mean() for T in (2, 6))
    assert values[1] - values[0] == pytest.approx(gap, rel=1e-8)


def test_a_teacher_with_itself_leaves_cross_entropy():
    loss, _, teacher, batch = case(ce=0.3)
    expected = 0.3 * torch.nn.functional.cross_entropy(teacher.strong.logits, batch.labels)
    assert loss(teacher, teacher, batch).item() == pytest.approx(expected.item())


def test_another_form_is_refused():
    with pytest.raises(ValueError, match="form: found 'half', expected public or masked"):
        case(form="half")


def test_entry():
    method = distiller_dict["mlkd"]
    assert (method.gamma, method.alpha, method.beta) == (0.1, 0, 1)  # MLKD's configurations, with ce and kd beside
    assert method.options == {"ce": 0.1, "kd": 0.9, "form": "public"}
    assert method.strong and method.on_logits and not method.own_T and not method.trainable
    assert [key for key, each in distiller_dict.items() if each.strong] == ["mlkd"]
