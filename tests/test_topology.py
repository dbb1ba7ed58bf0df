"""Topology losses against finite differences, GUDHI's images, and values worked by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.gudhis import gudhi_bars, gudhi_image
from test_diagrams import clouds_of, examples, make_cloud

from ripsnet import (
    ExactTopology,
    ImageSpec,
    RipsNet,
    RipsNetTopology,
    WassersteinTopology,
    dim0_deaths,
    dim0_images,
    dim1_diagrams,
    dim1_images,
)

SPECS = [
    ImageSpec(dim=0, sigma=0.4, sigma_rule="released", image_range=(0, 0, 0.2, 4.0), maximum=8.0, points=64),
    ImageSpec(dim=1, sigma=0.3, sigma_rule="released", image_range=(0.2, 4.0, 0.01, 1.0), maximum=60.0, points=64),
]


def cloud(n=12, d=3, seed=0, dtype=torch.float32, shape="random"):
    return torch.from_numpy(make_cloud(shape, n, d, seed)).to(dtype)


def ripsnets(d=16, count=1):
    torch.manual_seed(0)
    return RipsNetTopology([RipsNet(d) for _ in range(count)])


LOSSES = {
    "ripsnet": lambda: ripsnets(),
    "ripsnet, two dimensions": lambda: ripsnets(count=2),
    "exact, dimension 0": lambda: ExactTopology(SPECS[:1]),
    "exact, dimension 1": lambda: ExactTopology(SPECS[1:]),
    "exact, two dimensions": lambda: ExactTopology(SPECS),
    "wasserstein": WassersteinTopology,
}
every_loss = pytest.mark.parametrize("loss", [pytest.param(make(), id=name) for name, make in LOSSES.items()])


@every_loss
def test_zero_for_equal_clouds_and_positive_for_others(loss):
    student, teacher = cloud(d=16, seed=0), cloud(d=16, seed=1)
    assert loss(student, student).item() <= 1e-15  # rows of a batch may differ by roundings
    value = loss(student, teacher)
    assert value.shape == () and value.dtype == torch.float32 and value > 0


@every_loss
def test_the_gradient_reaches_the_student_only(loss):
    student, teacher = (cloud(d=16, seed=seed).requires_grad_() for seed in (0, 1))
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.isfinite().all() and student.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in loss.parameters())


@every_loss
@pytest.mark.parametrize("n", [1, 2, 3, 16])
def test_short_clouds(loss, n):
    """The last batch of an epoch may hold any number of images."""
    student, teacher = cloud(n, 16, 0).requires_grad_(), cloud(n, 16, 1)
    value = loss(student, teacher)
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all()


@pytest.mark.parametrize("name", ["exact, two dimensions", "wasserstein"])
def test_a_single_point_has_no_topology(name):
    student = cloud(1, 16).requires_grad_()
    value = LOSSES[name]()(student, cloud(1, 16, 1))
    value.backward()
    assert value == 0 and (student.grad == 0).all()


@every_loss
def test_gradients_stay_finite_on_duplicates(loss):
    student = cloud(20, 16, shape="duplicated").requires_grad_()
    loss(student, cloud(20, 16, 1)).backward()
    assert student.grad.isfinite().all()
    alike = torch.ones(8, 16, requires_grad=True)
    loss(alike, cloud(8, 16, 1)).backward()
    assert alike.grad.isfinite().all()


@every_loss
def test_autocast_outside_changes_nothing(loss):
    student, teacher = cloud(d=16).requires_grad_(), cloud(d=16, seed=1)
    expected = loss(student, teacher)
    (gradient,) = torch.autograd.grad(expected, student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher)
    assert value.dtype == torch.float32 and torch.equal(value, expected)
    assert torch.equal(torch.autograd.grad(value, student)[0], gradient)


@every_loss
def test_half_precision_clouds_are_compared_in_float32(loss):
    student, teacher = cloud(d=16).bfloat16(), cloud(d=16, seed=1)
    value = loss(student, teacher)
    assert value.dtype == torch.float32 and torch.equal(value, loss(student.float(), teacher))


@pytest.mark.parametrize("name", ["exact, dimension 0", "exact, dimension 1", "exact, two dimensions", "wasserstein"])
@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_equal_finite_differences(name, seed):
    loss = LOSSES[name]()
    student = cloud(12, 2, seed, torch.float64).requires_grad_()
    teacher = cloud(12, 2, seed + 10, torch.float64)
    if "1" in name or "two" in name:
        assert len(dim1_diagrams(student.unsqueeze(0))[0]) > 0
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student, eps=1e-6, atol=1e-7, rtol=1e-4)


@examples(15)
@given(clouds_of(40, 32), st.integers(0, 99))
def test_exact_dimension_0_is_the_mean_squared_difference_of_the_images(points, seed):
    student = torch.from_numpy(points)
    teacher = torch.randn(student.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    images = dim0_images(dim0_deaths(torch.stack([student, teacher])), SPECS[0])
    student.requires_grad_()
    loss = ExactTopology(SPECS[:1])(student, teacher)
    torch.testing.assert_close(loss.detach(), (images[0] - images[1]).square().mean(), rtol=1e-9, atol=1e-15)
    loss.backward()
    assert student.grad.isfinite().all()


def test_exact_images_of_both_dimensions():
    clouds = torch.stack([cloud(14, 2, seed, torch.float64) for seed in range(4)])
    images = ExactTopology(SPECS).images(clouds)
    expected = [dim0_images(dim0_deaths(clouds), SPECS[0]), dim1_images(dim1_diagrams(clouds), SPECS[1])]
    assert images.shape == (4, 800)
    torch.testing.assert_close(images, torch.cat(expected, dim=1), rtol=1e-9, atol=1e-12)
    assert ExactTopology(SPECS[1:]).images(clouds.float()).dtype == torch.float32


def test_ripsnet_loss_written_out():
    """The mean, not the sum, over the pixels; with two networks over all 800."""
    loss = ripsnets(count=2)
    student, teacher = cloud(d=16), cloud(d=16, seed=1)
    squares = [
        (a - b) ** 2
        for network in loss.networks
        for a, b in zip(network(student).tolist(), network(teacher).tolist(), strict=True)
    ]
    assert len(squares) == 800
    assert loss(student, teacher).item() == pytest.approx(np.mean(squares), rel=1e-4)
    clouds = torch.stack([student, teacher])
    expected = torch.cat([network(clouds) for network in loss.networks], dim=1)
    assert torch.equal(loss.images(clouds), expected)


def test_ripsnets_stay_frozen():
    loss = ripsnets().train()
    assert not any(module.training for module in loss.modules())
    assert not any(parameter.requires_grad for parameter in loss.parameters())


def test_clouds_of_different_sizes():
    student, teacher = cloud(10, 16), cloud(14, 16, 1)
    for name in ("ripsnet", "exact, two dimensions"):
        loss = LOSSES[name]()
        images = [loss.images(one.unsqueeze(0)) for one in (student, teacher)]
        torch.testing.assert_close(loss(student, teacher), (images[0] - images[1]).square().mean())
    with pytest.raises(ValueError, match="clouds of 10 and 14 points"):
        WassersteinTopology()(student, teacher)


def test_wasserstein_by_hand():
    """Death times (1, 2) and (1, 5), in whatever order the points come: (0 + 9) / (1 + 25)."""
    student = torch.tensor([[0.0], [1.0], [3.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 6.0], [0.0, 0.0], [0.0, 5.0]])
    value = WassersteinTopology()(student, teacher)
    assert value.item() == pytest.approx(9 / 26, rel=1e-6)
    value.backward()
    np.testing.assert_allclose(student.grad, [[0], [6 / 26], [-6 / 26]], rtol=1e-6)
    assert WassersteinTopology()(7 * student, 7 * teacher).item() == pytest.approx(9 / 26, rel=1e-6)


def test_wasserstein_is_optimal_transport_of_the_death_times():
    scipy_optimize = pytest.importorskip("scipy.optimize")
    clouds = torch.stack([cloud(20, 4, seed, torch.float64) for seed in (0, 1)])
    deaths = dim0_deaths(clouds).numpy()
    cost = (deaths[0][:, None] - deaths[1][None]) ** 2
    optimal = cost[scipy_optimize.linear_sum_assignment(cost)].mean() / (deaths[1] ** 2).mean()
    assert WassersteinTopology()(*clouds).item() == pytest.approx(optimal, rel=1e-9)


def test_wasserstein_to_a_teacher_of_equal_points():
    """Without a unit to divide by, the mean squared death time of the student itself."""
    student = torch.tensor([[0.0], [1.0], [3.0]])
    assert WassersteinTopology()(student, torch.ones(3, 1)).item() == pytest.approx((1 + 4) / 2)


def several(count=3, n=12, d=16, seed=0, dtype=torch.float32):
    return torch.stack([cloud(n, d, seed + number, dtype) for number in range(count)])


@every_loss
def test_one_cloud_of_a_batch_is_the_cloud_itself_bit_for_bit(loss):
    for n in (2, 12, 33):
        student, teacher = cloud(n, 16).requires_grad_(), cloud(n, 16, 1)
        expected, value = loss(student, teacher), loss(student[None], teacher[None])
        assert torch.equal(value, expected)
        gradients = [torch.autograd.grad(each, student)[0] for each in (expected, value)]
        assert torch.equal(*gradients)


def test_exact_topology_of_several_clouds_is_the_mean_over_gudhis_images():
    student, teacher = several(3, 14, 3), several(3, 14, 3, 10)
    expected = [
        np.mean([(gudhi_image(s, spec.to_dict()) - gudhi_image(t, spec.to_dict())) ** 2 for spec in SPECS])
        for s, t in zip(student.numpy(), teacher.numpy(), strict=True)
    ]
    assert max(expected) > 1.1 * min(expected) > 0
    assert ExactTopology(SPECS)(student, teacher).item() == pytest.approx(np.mean(expected), rel=1e-4)


def test_wasserstein_of_several_clouds_normalises_cloud_by_cloud():
    """SciPy's optimal matching for each cloud; the teacher's clouds are of unlike sizes."""
    scipy_optimize = pytest.importorskip("scipy.optimize")
    scale = torch.tensor([1.0, 10.0, 0.1])[:, None, None]
    student, teacher = several(3, dtype=torch.float64), scale * several(3, seed=10, dtype=torch.float64)
    expected = []
    for pair in zip(student, teacher, strict=True):
        s, t = (gudhi_bars(one.numpy(), 0)[:, 1] for one in pair)
        cost = (s[:, None] - t[None]) ** 2
        expected.append(cost[scipy_optimize.linear_sum_assignment(cost)].mean() / (t**2).mean())
    assert WassersteinTopology()(student, teacher).item() == pytest.approx(np.mean(expected), rel=1e-9)


def test_ripsnet_topology_of_several_clouds_is_the_mean_over_them():
    loss, student, teacher = ripsnets(count=2), several(), several(seed=10)
    expected = [
        ((network(s).double() - network(t).double()) ** 2).mean().item()
        for network in loss.networks
        for s, t in zip(student, teacher, strict=True)
    ]
    assert loss(student, teacher).item() == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.mark.parametrize("name", ["exact, two dimensions", "wasserstein"])
def test_gradients_of_two_clouds_equal_finite_differences(name):
    loss = LOSSES[name]()
    student = several(2, 10, 2, dtype=torch.float64).requires_grad_()
    teacher = several(2, 10, 2, 10, torch.float64)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student, eps=1e-6, atol=1e-7, rtol=1e-4)


def test_several_clouds_of_different_widths():
    """Topology knows distances only: a further coordinate that is zero changes nothing."""
    student, teacher = several(), several(seed=10)
    wider = torch.cat([teacher, torch.zeros(3, 12, 5)], dim=2)
    for name in ("exact, two dimensions", "wasserstein"):
        assert LOSSES[name]()(student, wider).item() == pytest.approx(LOSSES[name]()(student, teacher).item(), rel=1e-4)


@every_loss
def test_different_numbers_of_clouds_are_refused(loss):
    with pytest.raises(ValueError, match="found 2 clouds of the student and 3 of the teacher"):
        loss(several(2), several(3))
