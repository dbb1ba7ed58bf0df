"""What the tests of FitNet, AT, SP, CC, RKD, PKT and NST share: two networks' features, and what every loss must do."""

import itertools

import numpy as np
import pytest
import torch

from distiller_zoo import Output, Pair, distiller_dict

# Stages of equal size, then a larger one of the teacher's, then a larger one of the student's.
SHAPES_S = [(3, 8, 8), (4, 8, 8), (5, 4, 4), (6, 4, 4), (6,)]
SHAPES_T = [(3, 8, 8), (4, 8, 8), (7, 8, 8), (5, 2, 2), (5,)]
PAIR = Pair(SHAPES_S, SHAPES_T)
LONGER = Pair(SHAPES_S, [*SHAPES_T[:-1], SHAPES_T[-2], SHAPES_T[-1]])  # a teacher with one more stage


def features(shapes, size=4, seed=0):
    """Random features of a batch, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, *shape, generator=generator, dtype=torch.float64) for shape in shapes]


STUDENT, TEACHER = features(SHAPES_S, seed=1), features(SHAPES_T, seed=2)


def pooled(vectors):
    """Features of which only the pooled vector, rows of numbers, is there."""
    return [None, torch.as_tensor(vectors, dtype=torch.float64)]


def outputs(student, teacher):
    """The arguments of a loss that reads neither logits nor labels."""
    return Output(student, logits=None), Output(teacher, logits=None), None


def value(loss, student, teacher):
    """The loss of two lists of features."""
    return loss(*outputs(student, teacher))


def arrays(loss):
    """The loss's parameters by name, as NumPy arrays."""
    return {name: parameter.detach().double().numpy() for name, parameter in loss.named_parameters()}


def block_mean(maps, size):
    """Maps (B, C, H, W) averaged over blocks down to size x size pixels."""
    batch, channels, height, width = maps.shape
    return maps.reshape(batch, channels, size, height // size, size, width // size).mean(axis=(3, 5))


def stages():
    """(student's, teacher's) maps of every stage at the smaller size, as NumPy arrays."""
    for s, t in zip(STUDENT[1:-1], TEACHER[1:-1], strict=True):
        size = min(s.shape[2], t.shape[2])
        yield block_mean(s.numpy(), size), block_mean(t.numpy(), size)


def finite(loss):
    """One sample, zeros, duplicates: loss and gradients are finite, in the float32 and the mode of training."""
    for size, fill_s, fill_t in itertools.product((1, 3), (None, 0.0, 1.0), (None, 0.0)):
        student, teacher = (
            [x.float() if fill is None else torch.full_like(x, fill, dtype=torch.float32) for x in made]
            for made, fill in ((features(SHAPES_S, size, 1), fill_s), (features(SHAPES_T, size, 2), fill_t))
        )
        leaves = [*(x.requires_grad_() for x in student), *loss.parameters()]
        found = value(loss, student, teacher)
        grads = torch.autograd.grad(found, leaves, allow_unused=True)
        assert found.isfinite() and found.shape == (), (size, fill_s, fill_t)
        assert all(grad is None or grad.isfinite().all() for grad in grads), (size, fill_s, fill_t)


def differentiable(loss):
    """Derivatives against finite differences, by the student's features and the loss's own parameters."""
    named = dict(loss.double().named_parameters())
    teacher = [x[:3] for x in TEACHER]

    def call(*inputs):
        student, parameters = inputs[: len(STUDENT)], dict(zip(named, inputs[len(STUDENT) :], strict=True))
        return torch.func.functional_call(loss, parameters, outputs(student, teacher))

    leaves = [x[:3].clone().requires_grad_() for x in STUDENT]
    assert torch.autograd.gradcheck(call, [*leaves, *named.values()], fast_mode=True)


def decreasing(loss):
    """Ten small steps of gradient descent on a batch's features make the loss smaller at every step."""
    leaves = [*(x.clone().requires_grad_() for x in STUDENT), *loss.double().parameters()]
    losses = []
    for _ in range(11):
        losses.append(value(loss, leaves[: len(STUDENT)], TEACHER))
        grads = torch.autograd.grad(losses[-1], leaves, allow_unused=True, materialize_grads=True)
        rate = 0.05 * losses[-1].item() / sum(grad.square().sum() for grad in grads)  # to first order, 5 % less
        with torch.no_grad():
            for leaf, grad in zip(leaves, grads, strict=True):
                leaf -= rate * grad
    assert all(after < before for before, after in itertools.pairwise(losses))


EVERY_LOSS = pytest.mark.parametrize("check", [finite, differentiable, decreasing])


def check_entry(key, beta, options, reading=({},)):
    """The registry's entry: weights, options and their defaults, that the features it names are those the loss reads.

    reading: options with each of which the loss is built, so that together they read every feature named.
    """
    method = distiller_dict[key]
    assert (method.gamma, method.alpha, method.beta, method.options) == (1.0, 0.0, beta, options)
    assert (method.warmup, method.first_epochs, method.preact_s, method.preact_t, method.last_map) == (0, 0) + (
        False,
    ) * 3
    assert method.source.startswith("published: RepDistiller's scripts") and not method.by_pair

    student, teacher = method.select(STUDENT), method.select(TEACHER)
    read = set()
    for each in reading:
        loss = method.loss(PAIR, **each)
        assert value(loss, student, teacher).isfinite()  # whatever is not named is None
        for i in range(len(STUDENT)):
            without = [None if i == j else x for j, x in enumerate(student)]
            try:
                value(loss, without, teacher)
            except (AttributeError, TypeError):
                read.add(i)
    assert read == {i for i, x in enumerate(student) if x is not None}
    assert method.trainable == bool(list(method.loss(PAIR).parameters()))


def close(found, expected):
    return np.testing.assert_allclose(float(found.detach()), expected, rtol=1e-10, atol=1e-14)
