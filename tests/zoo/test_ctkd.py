"""CTKD against its formula with SciPy; the reversed gradient against the derivative by the temperature."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit, rel_entr, softmax
from torch import nn

from distiller_zoo import Batch, Output, Pair, distiller_dict

CLASSES = 5
CTKD = distiller_dict["ctkd"].loss


def case(count=3, make=torch.randn, epoch=4, **options):
    """(loss, student, teacher, batch) in float64."""
    torch.manual_seed(0)
    loss = CTKD(Pair((), (), classifier_t=nn.Linear(2, CLASSES)), **options).double()
    student, teacher = (Output([], 2 * make(count, CLASSES, dtype=torch.float64)) for _ in range(2))
    student.logits.requires_grad_()
    return loss, student, teacher, Batch(torch.arange(count), torch.arange(count), torch.tensor(epoch))


def divergence(student, teacher, T):
    """Mean over the images of T^2 KL, T a number for each."""
    both = zip(student.logits.detach().numpy(), teacher.logits.numpy(), T, strict=True)
    return np.mean([t**2 * rel_entr(softmax(b / t), softmax(a / t)).sum() for a, b, t in both])


@pytest.mark.parametrize("g", [1.0, -2.0, 0.3])
def test_formula(g):
    loss, student, teacher, batch = case(t_start=2.0, t_range=9.0)
    nn.init.constant_(loss.g, g)
    expected = divergence(student, teacher, [2 + 9 * expit(g)] * 3)
    assert loss(student, teacher, batch).item() == pytest.approx(expected, rel=1e-10)


def test_it_starts_at_the_published_temperature_between_1_and_21():
    for form in ("global", "instance"):
        loss, student, teacher, batch = case(form=form)
        T = loss.temperature(student, teacher, batch.epoch)
        assert T.detach().numpy() == pytest.approx(15.62, abs=0.01 if form == "global" else 0.2)
    loss, student, teacher, batch = case()
    for g, limit in ((-50.0, 1.0), (50.0, 21.0)):
        nn.init.constant_(loss.g, g)
        assert loss.temperature(student, teacher, batch.epoch).item() == pytest.approx(limit)


# The coefficients that the authors' logs show for ten epochs, and both ends.
LOGGED = [(1, -0.024), (2, -0.095), (5, -0.5), (10, -1.0), (11, -1.0), (240, -1.0)]


@pytest.mark.parametrize("epoch, coefficient", LOGGED)
def test_the_gradient_at_the_temperature_is_reversed_more_and_more(epoch, coefficient):
    loss, student, teacher, batch = case(epoch=epoch)
    loss(student, teacher, batch).backward()
    step = 1e-5
    by_T = [divergence(student, teacher, [1 + 20 * expit(1 + sign * step)] * 3) for sign in (1, -1)]
    derivative = (by_T[0] - by_T[1]) / (2 * step)
    assert loss.g.grad.item() == pytest.approx(coefficient * derivative, rel=0.03)
    exact = -(1 - math.cos(math.pi * min(epoch, 10) / 10)) / 2
    assert loss.g.grad.item() == pytest.approx(exact * derivative, rel=1e-6)


def test_a_longer_ramp_reverses_later():
    gradients = []
    for ramp in (5, 10, 20):
        loss, student, teacher, batch = case(epoch=5, ramp=ramp)
        loss(student, teacher, batch).backward()
        gradients.append(loss.g.grad.item())
    assert gradients[1] == pytest.approx(gradients[0] / 2) and 0 < gradients[2] / gradients[0] < 0.2


@pytest.mark.parametrize("form", ["global", "instance"])
def test_the_students_gradient_is_that_of_kd_at_this_temperature(form):
    loss, student, teacher, batch = case(form=form)
    if form == "instance":
        nn.init.normal_(loss.predict[-1].weight)  # temperatures that differ
    loss(student, teacher, batch).backward()
    T = loss.temperature(student, teacher, batch.epoch).detach().expand(3, 1).numpy()
    z_s, z_t = student.logits.detach().numpy(), teacher.logits.numpy()
    expected = T * (softmax(z_s / T, axis=1) - softmax(z_t / T, axis=1)) / 3
    assert np.allclose(student.logits.grad.numpy(), expected)


def test_the_instance_form_has_a_temperature_for_each_image():
    loss, student, teacher, batch = case(form="instance", epoch=10)
    nn.init.normal_(loss.predict[-1].weight)
    first, _, second = loss.predict
    x = np.concatenate([student.logits.detach().numpy(), teacher.logits.numpy()], axis=1)
    hidden = np.maximum(x @ first.weight.detach().numpy().T + first.bias.detach().numpy(), 0)
    g = hidden @ second.weight.detach().numpy().T + second.bias.detach().numpy()
    T = (1 + 20 * expit(g))[:, 0]
    assert np.ptp(T) > 0.1 and hidden.shape == (3, CLASSES)
    value = loss(student, teacher, batch)
    assert value.item() == pytest.approx(divergence(student, teacher, T), rel=1e-10)
    value.backward()
    forward = loss.predict[-1].bias.grad.item()
    step = 1e-5
    moved = [divergence(student, teacher, (1 + 20 * expit(g + sign * step))[:, 0]) for sign in (1, -1)]
    assert forward == pytest.approx(-(moved[0] - moved[1]) / (2 * step), rel=1e-5)


def test_gradient():
    """Of the student's logits; the reversed ones are not the derivative of anything."""
    loss, student, teacher, batch = case()
    assert torch.autograd.gradcheck(lambda logits: loss(student, teacher, batch), student.logits)


def test_the_temperature_climbs_where_that_makes_kd_harder():
    """Descent on g alone: the loss rises."""
    loss, student, teacher, batch = case(epoch=10)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.05)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        values.append(loss(student, teacher, batch))
        values[-1].backward()
        optimizer.step()
    assert values == sorted(values) and values[-1] > values[0]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"form": "class"}, "form: found 'class', expected global or instance"),
        ({"ramp": 0}, "ramp: found 0, expected more than 0"),
        ({"t_start": 0.0}, "t_start: found 0.0, expected more than 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        case(**options)


def test_entry():
    method = distiller_dict["ctkd"]
    assert (method.gamma, method.alpha, method.beta) == (0.1, 0, 0.9)  # CTKD's script for ResNet56 > ResNet20
    assert method.options == {"form": "global", "t_start": 1.0, "t_range": 20.0, "ramp": 10}
    assert method.trainable and method.on_logits and method.own_T
    assert method.settings("resnet56", "resnet20")[2].startswith("published")
    assert method.settings("vgg13", "vgg8")[2].startswith("assumed")
