"""Persistence images against gudhi.representations.PersistenceImage, and the rules for sigma against literal loops."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_diagrams import batch, clouds_of, examples

from ripsnet import (
    ImageSpec,
    birth_persistence,
    diagram_image,
    diagram_quality,
    dim0_deaths,
    dim0_images,
    dim1_diagrams,
    dim1_images,
    r2_score,
    released_sigma,
    simplex_tree_diagram,
    subsample_sigma,
)
from ripsnet import images as implementation

SPECS = [
    ImageSpec(dim=0, sigma=0.35, sigma_rule="released", image_range=(0, 0, 1.37, 14.81), maximum=7.5),
    ImageSpec(dim=1, sigma=0.35, sigma_rule="released", image_range=(1.2, 6.5, 0.01, 2.5), maximum=120.0),
]


def gudhi_images(diagrams, spec):
    """The released recipe."""
    representations = pytest.importorskip("gudhi.representations")
    image = representations.PersistenceImage(
        bandwidth=spec.sigma,
        weight=lambda x: 10 * np.tanh(x[1]) + 10 * np.log(100 * x[0] + 1),
        resolution=list(spec.resolution),
        im_range=list(spec.image_range),
    )
    return image.fit_transform(diagrams) / spec.maximum


def random_deaths(count, m, seed=0):
    """Sorted death times, some of them zero."""
    rng = np.random.default_rng(seed)
    return np.sort(np.maximum(rng.uniform(-2, 16, size=(count, m)), 0), axis=1)


def random_diagrams(count, seed=0):
    rng = np.random.default_rng(seed)
    births = [rng.uniform(1, 7, size=rng.integers(0, 30)) for _ in range(count)]
    return [np.stack([b, b + rng.uniform(0.001, 3, size=len(b))], axis=1) for b in births]


def with_zero_births(deaths):
    return [np.stack([np.zeros_like(row), row], axis=1) for row in deaths]


def fitted_spec(points, dim):
    low, high = points.min(axis=0), points.max(axis=0)
    sigma = max(1e-9, 0.1 * np.abs(points[:, 1]).max())
    return ImageSpec(
        dim=dim, sigma=sigma, sigma_rule="released", image_range=(low[0], high[0], low[1], high[1]), maximum=3.0
    )


def assert_same_images(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max(initial=0))


@pytest.mark.parametrize("m", [1, 63])
def test_dim0_images_equal_gudhi(m):
    deaths = random_deaths(20, m)
    assert (deaths == 0).any()
    expected = gudhi_images([bars[bars[:, 1] > 0] for bars in with_zero_births(deaths)], SPECS[0])
    images = dim0_images(torch.from_numpy(deaths), SPECS[0])
    assert images.dtype == torch.float64 and images.shape == (20, 400)
    assert_same_images(images, expected)
    rounded = dim0_images(torch.from_numpy(deaths).float(), SPECS[0])
    assert rounded.dtype == torch.float32
    np.testing.assert_allclose(rounded, expected, rtol=1e-3, atol=1e-6 * expected.max())


def test_dim1_images_equal_gudhi():
    diagrams = random_diagrams(20)
    images = dim1_images(diagrams, SPECS[1])
    assert images.dtype == torch.float64 and images.shape == (20, 400)
    assert_same_images(images, gudhi_images(diagrams, SPECS[1]))


@examples(30)
@given(clouds_of(64, 128))
def test_dim0_images_of_clouds_equal_the_released_recipe(cloud):
    diagram = simplex_tree_diagram(cloud, 0)
    if len(diagram):
        spec = fitted_spec(diagram, 0)
        assert_same_images(dim0_images(dim0_deaths(batch(cloud)), spec), gudhi_images([diagram], spec))


@examples(30)
@given(clouds_of(16, 8, min_n=8))
def test_dim1_images_of_clouds_equal_gudhi(cloud):
    (diagram,) = dim1_diagrams(cloud[None], n_jobs=1)
    if len(diagram):
        spec = fitted_spec(birth_persistence([diagram]), 1)
        assert_same_images(dim1_images([diagram], spec), gudhi_images([diagram], spec))


@pytest.mark.parametrize("resolution", [(20, 20), (7, 12), (1, 1)])
def test_other_resolutions_equal_gudhi(resolution):
    """The first number counts columns (births), the second rows (persistences), as in GUDHI."""
    spec0, spec1 = (dataclasses.replace(spec, resolution=resolution) for spec in SPECS)
    deaths, diagrams = random_deaths(3, 5), random_diagrams(3)
    assert_same_images(dim0_images(torch.from_numpy(deaths), spec0), gudhi_images(with_zero_births(deaths), spec0))
    assert_same_images(dim1_images(diagrams, spec1), gudhi_images(diagrams, spec1))


def test_an_image_worked_by_hand():
    """One bar at a grid point: weight over 2 pi sigma^2 there, exp(-1/2) of it one sigma away."""
    spec = ImageSpec(dim=1, sigma=0.5, sigma_rule="released", image_range=(0, 9.5, 0, 9.5), maximum=2.0)
    image = dim1_images([np.array([[1.0, 4.0]])], spec).reshape(20, 20)
    peak = (10 * math.tanh(3) + 10 * math.log(101)) / (2 * math.pi * 0.25) / 2
    assert image.argmax() == 20 * 6 + 2  # persistence 3 is the seventh row, birth 1 the third column
    assert image[6, 2].item() == pytest.approx(peak, rel=1e-12)
    for row, column in [(5, 2), (7, 2), (6, 1), (6, 3)]:
        assert image[row, column].item() == pytest.approx(peak * math.exp(-0.5), rel=1e-12)


def test_dim0_images_hold_20_distinct_numbers():
    images = dim0_images(torch.from_numpy(random_deaths(10, 63)), SPECS[0])
    for image in images:
        assert len(image.unique()) == 20
        assert (image.reshape(20, 20) == image.reshape(20, 20)[:, :1]).all()


def test_zero_bars_add_nothing():
    deaths = torch.from_numpy(random_deaths(4, 10))
    padded = torch.cat([torch.zeros(4, 7, dtype=torch.float64), deaths], dim=1)
    torch.testing.assert_close(dim0_images(padded, SPECS[0]), dim0_images(deaths, SPECS[0]), rtol=1e-12, atol=0)
    assert (dim0_images(torch.zeros(2, 5), SPECS[0]) == 0).all()
    assert torch.equal(dim0_images(torch.zeros(2, 0), SPECS[0]), torch.zeros(2, 400))


def test_empty_diagrams_of_dimension_1():
    images = dim1_images([np.empty((0, 2)), np.array([[2.0, 3.0]]), np.empty((0, 2))], SPECS[1])
    assert (images[[0, 2]] == 0).all() and images[1].max() > 0
    assert torch.equal(dim1_images([np.empty((0, 2))], SPECS[1]), torch.zeros(1, 400, dtype=torch.float64))
    assert dim1_images([], SPECS[1]).shape == (0, 400)


def test_more_diagrams_than_a_block(monkeypatch):
    deaths, diagrams = torch.from_numpy(random_deaths(30, 9)), random_diagrams(30)
    whole = dim0_images(deaths, SPECS[0]), dim1_images(diagrams, SPECS[1])
    monkeypatch.setattr(implementation, "BLOCK_ELEMENTS", 1300)
    torch.testing.assert_close(dim0_images(deaths, SPECS[0]), whole[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(dim1_images(diagrams, SPECS[1]), whole[1], rtol=1e-12, atol=1e-15)


def test_a_batch_of_diagrams_equals_its_diagrams():
    diagrams = random_diagrams(6)
    images = dim1_images(diagrams, SPECS[1])
    for diagram, image in zip(diagrams, images, strict=True):
        births, deaths = torch.from_numpy(diagram).unbind(1)
        one = diagram_image(births, deaths - births, SPECS[1])
        assert one.shape == (400,)
        torch.testing.assert_close(one, image, rtol=1e-9, atol=1e-15)
        assert diagram_image(births.float(), (deaths - births).float(), SPECS[1]).dtype == torch.float32


def test_images_are_differentiable():
    deaths = torch.from_numpy(random_deaths(1, 6)).requires_grad_()
    assert (deaths == 0).any()
    assert torch.autograd.gradcheck(lambda d: dim0_images(d, SPECS[0])[:, ::20], deaths, atol=1e-6)
    births = torch.tensor([2.0, 3.5], dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([0.5, 1.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda b, p: diagram_image(b, p, SPECS[1]), (births, lengths), atol=1e-6)


def test_a_spec_of_another_dimension_is_refused():
    with pytest.raises(ValueError, match="dimension 1; expected dimension 0"):
        dim0_images(torch.zeros(1, 3), SPECS[1])
    with pytest.raises(ValueError, match="dimension 0; expected dimension 1"):
        dim1_images([np.empty((0, 2))], SPECS[0])


def test_birth_persistence_lists_bars_in_order():
    deaths = torch.tensor([[0.0, 1.0], [0.0, 0.0], [2.0, 3.0]])
    assert birth_persistence(deaths).tolist() == [[0, 1], [0, 2], [0, 3]]
    diagrams = [np.array([[1.0, 4.0]]), np.empty((0, 2)), np.array([[2.0, 2.5], [3.0, 3.0]])]
    assert birth_persistence(diagrams).tolist() == [[1, 3], [2, 0.5]]
    assert birth_persistence([]).shape == (0, 2)


def literal_sigma(points, ordered_pairs):
    distances = [
        math.dist(points[i], points[j])
        for i in range(len(points))
        for j in (range(len(points)) if ordered_pairs else range(i + 1, len(points)))
    ]
    return np.quantile([distance for distance in distances if distance > 1e-5], 0.2)


@pytest.mark.parametrize("count", [2, 30, 250])
def test_sigma_rules_equal_literal_loops(count):
    points = np.random.default_rng(count).uniform(0, 9, size=(count, 2))
    points[1::5] = points[::5][: len(points[1::5])]  # equal points do not count
    points[0] = 9
    assert released_sigma(points) == pytest.approx(literal_sigma(points[:200], True), rel=1e-12)
    assert subsample_sigma(points, seed=1) == pytest.approx(literal_sigma(points, False), rel=1e-12)


def test_released_sigma_looks_at_the_first_200_points_only():
    points = np.random.default_rng(0).uniform(0, 9, size=(400, 2))
    changed = points.copy()
    changed[200:] *= 50
    assert released_sigma(points) == released_sigma(changed) == released_sigma(points[:200])
    assert subsample_sigma(points) != subsample_sigma(changed)


def test_subsample_sigma_is_seeded_and_hardly_depends_on_the_order():
    rng = np.random.default_rng(0)
    points = np.stack([np.zeros(20000), rng.gamma(9, size=20000)], axis=1)
    assert subsample_sigma(points, seed=3) == subsample_sigma(points, seed=3)
    assert subsample_sigma(points, seed=3) != subsample_sigma(points, seed=4)
    shuffled = [rng.permutation(points) for _ in range(8)]
    spread = {rule: np.ptp([rule(one) for one in shuffled]) for rule in (released_sigma, subsample_sigma)}
    assert spread[subsample_sigma] < spread[released_sigma] / 2


@pytest.mark.parametrize("rule", [released_sigma, subsample_sigma])
@pytest.mark.parametrize("points", [np.empty((0, 2)), np.ones((1, 2)), np.ones((50, 2)), 1e-6 * np.eye(2)])
def test_points_that_define_no_sigma(rule, points):
    with pytest.raises(ValueError, match="1e-5"):
        rule(points)


def test_r2_score():
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(9, 400, generator=generator)
    prediction = target + 0.1 * torch.randn(9, 400, generator=generator)
    truth, guess = target.double().numpy(), prediction.double().numpy()
    expected = 1 - ((guess - truth) ** 2).sum() / ((truth - truth.mean(axis=0)) ** 2).sum()
    assert r2_score(prediction, target) == pytest.approx(expected, rel=1e-12)
    assert r2_score(target, target) == 1
    assert r2_score(target.mean(dim=0).expand(9, 400), target) == pytest.approx(0, abs=1e-6)
    baseline = torch.full((400,), 0.25)
    expected = 1 - ((guess - truth) ** 2).mean() / ((truth - 0.25) ** 2).mean()
    assert r2_score(prediction, target, baseline) == pytest.approx(expected, rel=1e-12)


def test_quality_of_diagrams():
    spec = ImageSpec(dim=0, sigma=0.5, sigma_rule="released", image_range=(0, 0, 1, 20), maximum=1.0)
    quality = diagram_quality(torch.tensor([[0.0, 1.0, 5.0], [0.5, 20.0, 21.0]]), spec)
    assert quality == {
        "bars": 5.0,
        "zero_bars": 1.0,
        "in_range": 0.6,
        "birth_step_over_sigma": 0.0,
        "persistence_step_over_sigma": 2.0,
    }
    spec = ImageSpec(dim=1, sigma=0.5, sigma_rule="released", image_range=(0, 19, 0, 9.5), maximum=1.0)
    quality = diagram_quality([np.array([[1.0, 2.0], [20.0, 21.0]]), np.array([[3.0, 30.0]])], spec)
    assert quality["in_range"] == pytest.approx(1 / 3)
    assert (quality["birth_step_over_sigma"], quality["persistence_step_over_sigma"]) == (2.0, 1.0)
    assert all(type(value) is float for value in quality.values())
    assert math.isnan(diagram_quality([], spec)["in_range"])


@examples(10)
@given(
    st.integers(0, 1),
    st.floats(1e-6, 1e6),
    st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4),
    st.one_of(st.none(), st.integers(-3, 0)),
)
def test_specs_survive_json(dim, positive, bounds, layer):
    bounds = [0, 0] * (1 - dim) + sorted(bounds[: 2 * dim]) + sorted(bounds[2:])
    spec = ImageSpec(
        dim=dim, sigma=positive, sigma_rule="subsample", image_range=bounds, maximum=1 / positive, layer=layer, seed=12
    )
    assert ImageSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_numpy_numbers_become_plain_ones():
    spec = dataclasses.replace(SPECS[0], sigma=np.float32(0.5), image_range=np.array([0, 0, 1, 2.0]))
    assert json.dumps(spec.to_dict())
    assert spec == dataclasses.replace(SPECS[0], sigma=0.5, image_range=(0.0, 0.0, 1.0, 2.0))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dim": 2}, "dim must be 0 or 1"),
        ({"sigma": 0}, "sigma must be positive"),
        ({"sigma": None}, "wrong type"),
        ({"sigma": 10**400}, "too large"),
        ({"resolution": [math.inf, 20]}, "too large"),
        ({"maximum": math.nan}, "maximum must be positive"),
        ({"weight": "1"}, "weight must be"),
        ({"resolution": [20]}, "resolution must be"),
        ({"image_range": [0, 0, 1]}, "image_range must be"),
        ({"image_range": [0, 0, 2, 1]}, "image_range must be"),
        ({"image_range": [0, 1, 1, 2]}, "births of dimension 0 are 0"),
        ({"colour": "red"}, "unknown keys: \\['colour'\\]"),
    ],
)
def test_wrong_specs_are_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        ImageSpec.from_dict(SPECS[0].to_dict() | change)
    assert "\n" not in str(error.value)


def test_the_default_range_is_omitted():
    """A spec over all bars is written as it was before there was a choice, and read so."""
    assert "range_rule" not in SPECS[0].to_dict()
    other = dataclasses.replace(SPECS[0], range_rule="q99")
    assert other.to_dict()["range_rule"] == "q99" and ImageSpec.from_dict(other.to_dict()) == other != SPECS[0]


def test_missing_keys_are_refused():
    fields = SPECS[0].to_dict()
    for name in ("dim", "sigma", "image_range", "maximum", "weight", "resolution"):
        with pytest.raises(ValueError, match=f"missing keys: \\['{name}'\\]"):
            ImageSpec.from_dict({key: value for key, value in fields.items() if key != name})
    assert ImageSpec.from_dict({key: value for key, value in fields.items() if key != "seed"}) == SPECS[0]
