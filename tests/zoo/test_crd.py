"""CRD against its definition in loops and with the contrasted vectors gathered; memory, negatives and resumption."""

import copy

import numpy as np
import pytest
import scipy.stats
import torch
from support.layers import array
from support.zoo import CLASSES, make_case, make_pair

from distiller_zoo import Batch, distiller_dict

NEGATIVES = torch.tensor([[0, 2, 3, 5, 6, 2], [1, 1, 4, 8, 10, 11], [0, 1, 3, 4, 6, 7], [0, 1, 3, 4, 6, 9]])


def fixed(**options):
    """(loss, student, teacher, batch) whose negatives are always the same."""
    case = make_case("crd", **options)
    case.loss.draw = lambda labels: NEGATIVES[: len(labels)]
    return case.loss, case.student, case.teacher, case.batch


def unit(x):
    return x / np.sqrt((x**2).sum(-1, keepdims=True))


def embedded(layer, x):
    return unit(array(x) @ array(layer.weight).T + array(layer.bias))


def test_formula_over_two_steps():
    loss, student, teacher, batch = fixed(nce_t=0.5, nce_m=0.75)
    v = embedded(loss.embed_s, student.features[-1]), embedded(loss.embed_t, teacher.features[-1])
    memory = [array(loss.memory_s).copy(), array(loss.memory_t).copy()]
    n, K, Z = 12, 6, None
    contrasted = [[i, *row] for i, row in zip(batch.indices.tolist(), NEGATIVES.tolist(), strict=True)]
    for _ in range(2):
        both = [(v[0], memory[1]), (v[1], memory[0])]  # an anchor meets the other network's memory
        e = [[[np.exp(a[b] @ w[j] / 0.5) for j in row] for b, row in enumerate(contrasted)] for a, w in both]
        Z = Z or [np.mean(x) * n for x in e]  # from the first batch
        expected = 0.0
        for side in range(2):
            for row in np.array(e[side]) / Z[side]:
                h = row / (row + K / n + 1e-7)
                expected -= (np.log(h[0]) + np.log(1 - h[1:]).sum()) / len(contrasted)
        assert loss(student, teacher, batch).item() == pytest.approx(expected, rel=1e-6)  # 1 - h leaves out an epsilon
        for side in range(2):
            for b, i in enumerate(batch.indices):
                memory[side][i] = unit(0.75 * memory[side][i] + 0.25 * v[side][b])
        assert np.allclose(array(loss.memory_s), memory[0]) and np.allclose(array(loss.memory_t), memory[1])
        assert [loss.Z_s.item(), loss.Z_t.item()] == pytest.approx(Z)


def test_gathering_the_vectors_gives_the_same_loss_and_gradients():
    torch.manual_seed(0)
    pair = make_pair(labels=torch.randint(CLASSES, (200,)))
    case = make_case("crd", pair, feat_dim=16, nce_k=300)
    loss, student, teacher = case.loss, case.student, case.teacher
    batch = Batch(pair.labels[:4], torch.arange(4))
    x = student.features[-1]
    drawn = torch.cat([batch.indices[:, None], loss.draw(batch.labels)], dim=1)
    loss.draw = lambda labels: drawn[:, 1:]
    expected = 0.0
    anchors = loss.embed_s(x), loss.embed_t(teacher.features[-1])
    for anchor, memory in zip(anchors, (loss.memory_t.clone(), loss.memory_s.clone()), strict=True):
        powers = (torch.bmm(memory[drawn], anchor[:, :, None]).squeeze(2) / 0.07).exp()
        odds = powers / (powers.mean() * 200).detach() / (300 / 200)  # of the joint against the noise distribution
        expected = expected + (odds[:, 0].reciprocal().log1p() + odds[:, 1:].log1p().sum(dim=1)).mean()
    leaves = x, *loss.parameters()
    value = loss(student, teacher, batch)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
    for got, wanted in zip(torch.autograd.grad(value, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_the_memories_start_on_the_unit_sphere_in_all_directions():
    loss = distiller_dict["crd"].loss(make_pair(labels=torch.arange(5000) % CLASSES))
    for memory in (loss.memory_s, loss.memory_t):
        assert memory.shape == (5000, 128)
        torch.testing.assert_close(memory.norm(dim=1), torch.ones(5000))
        deviations = memory.mean(dim=0) * (128 * 5000) ** 0.5  # of variance 1, were a coordinate's variance 1 / 128
        assert deviations.abs().max() < 4.5 and deviations.std() == pytest.approx(1, abs=0.2)
    assert (loss.memory_s * loss.memory_t).sum(dim=1).mean().abs() < 0.01  # drawn apart


def test_negatives_are_uniform_over_the_images_of_other_classes():
    labels = torch.tensor([2, 0, 1, 2, 2, 0, 1, 2, 2])
    loss = make_case("crd", make_pair(labels=labels), nce_k=4000).loss
    drawn = loss.draw(torch.tensor([0, 1, 2, 2]))
    assert drawn.shape == (4, 4000)
    for label, row in zip((0, 1, 2, 2), drawn, strict=True):
        counts = torch.bincount(row, minlength=9)
        assert counts[labels == label].sum() == 0
        assert scipy.stats.chisquare(counts[labels != label]).pvalue > 0.01
    assert not torch.equal(drawn[2], drawn[3])
    same = (drawn[:, 1:] == drawn[:, :-1]).double().mean(dim=1)  # neighbours agree as often as chance has it
    torch.testing.assert_close(same, torch.tensor([1 / 7, 1 / 7, 1 / 4, 1 / 4]).double(), rtol=0, atol=0.03)


def test_the_order_of_the_batch_does_not_matter():
    loss, student, teacher, batch = fixed()
    order = torch.tensor([2, 0, 3, 1])
    other = copy.deepcopy(loss)
    other.draw = lambda labels: NEGATIVES[order]
    shuffled = [x._replace(features=[*x.features[:-1], x.features[-1][order]]) for x in (student, teacher)]
    for _ in range(2):
        value = loss(student, teacher, batch)
        torch.testing.assert_close(other(*shuffled, Batch(batch.labels[order], batch.indices[order])), value)
    torch.testing.assert_close(other.state_dict(), loss.state_dict())


def test_features_in_half_precision_leave_the_memory_in_float32():
    case = make_case("crd", dtype=torch.float32)
    for output in (case.student, case.teacher):
        output.features[-1] = output.features[-1].bfloat16().float()
    case.value()
    assert case.loss.memory_s.dtype == torch.float32
    torch.testing.assert_close(case.loss.memory_s.norm(dim=1), torch.ones(12))
