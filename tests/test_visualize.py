"""visualize.py: the figure's data against the clouds and the network it was drawn from."""

import csv

import numpy as np
import pytest
import torch

import visualize
from helper import checkpoint
from helper.clouds import CloudSet
from helper.options import UserError
from helper.runs import clouds_folder, ripsnet_folder, spec_file
from models import create_model
from ripsnet import ImageSpec, RipsNet, dim0_deaths, dim0_images, dim1_diagrams, dim1_images, r2_score

COUNT, TRAINING, POINTS, WIDTH = 16, 12, 12, 64  # clouds, those that trained, points in each, channels of resnet8
SHOWN = 3


@pytest.fixture
def teacher(tmp_path, monkeypatch):
    """A folder with an untrained teacher, clouds, exact images, and a RipsNet for both dimensions; its options."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = create_model("resnet8", 10)
    path = tmp_path / "save_t_models" / "tiny" / "best.pth"
    checkpoint.save(path, {"model": model.state_dict(), "arch": "resnet8", "num_classes": 10, "dataset": "digits"})

    options = ["pi", "--path_t", str(path), "--dim", "01", "--batch_size", str(POINTS), "--clouds", str(SHOWN)]
    args = visualize.get_args_parser().parse_args([*options, "--dataset", "digits", "--out", "figures"])
    files = CloudSet(clouds_folder(args), COUNT)
    clouds = torch.randn(COUNT, POINTS, WIDTH).half()
    files.write("clouds", 0, clouds.numpy())
    for dim, image_range in ((0, (0, 0, 8, 12)), (1, (8, 12, 0, 1))):
        spec = ImageSpec(
            dim,
            0.4,
            "released",
            image_range,
            1e3,
            layer=-1,
            pcd_bn="eval",
            points=POINTS,
            cloud_width=WIDTH,
            num_clouds=COUNT,
            teacher_sha256=checkpoint.weights_sha256(model.state_dict()),
        )
        checkpoint.write_json(spec_file(files.folder, dim), spec.to_dict())
        exact = (
            dim0_images(dim0_deaths(clouds.double()), spec) if dim == 0 else dim1_images(dim1_diagrams(clouds), spec)
        )
        files.write(f"images_dim{dim}", 0, exact.float().numpy())
        checkpoint.save(
            ripsnet_folder(files.folder, dim, "mean") / "best.pth",
            {
                "model": RipsNet(WIDTH, "mean").state_dict(),
                "operator": "mean",
                "spec": spec.to_dict(),
                "quality": {"r2": 0.0, "train_clouds": TRAINING},
            },
        )
    return args


def test_the_data_beside_the_figure(teacher, monkeypatch):
    titles, draw = [], visualize.draw_pi
    monkeypatch.setattr(visualize, "draw_pi", lambda title, *rest: titles.append(title) or draw(title, *rest))
    teacher.main(teacher)

    folder = clouds_folder(teacher)
    clouds = torch.from_numpy(np.load(folder / "clouds" / "00000.npy")).float()
    for dim in (0, 1):
        exact = torch.from_numpy(np.load(folder / f"images_dim{dim}" / "00000.npy"))
        network = RipsNet(WIDTH, "mean")
        weights = torch.load(ripsnet_folder(folder, dim, "mean") / "best.pth", weights_only=True)["model"]
        network.load_state_dict(weights)
        with torch.no_grad():
            found = network(clouds)

        png = visualize.Path("figures") / f"pi_tiny_dim{dim}_mean.png"
        assert png.read_bytes().startswith(b"\x89PNG")
        with open(png.with_suffix(".csv")) as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == SHOWN * 400
        numbers = [int(row["cloud"]) for row in rows[::400]]
        values = {key: np.array([float(row[key]) for row in rows]).reshape(SHOWN, 400) for key in rows[0]}
        np.testing.assert_allclose(values["exact"], exact[numbers], rtol=1e-5)
        np.testing.assert_allclose(values["ripsnet"], found[numbers], rtol=1e-5)
        mean_image = exact[:TRAINING].mean(dim=0)
        np.testing.assert_allclose(values["training_mean"][0], mean_image, rtol=1e-4, atol=1e-7)

        low_b, high_b, low_p, high_p = ImageSpec.load(spec_file(folder, dim)).image_range
        np.testing.assert_allclose(values["birth"][0, :20], np.linspace(low_b, high_b, 20))
        np.testing.assert_allclose(values["persistence"][0, ::20], np.linspace(low_p, high_p, 20))

        errors = (found - exact)[TRAINING:].square().mean(dim=1)
        assert min(numbers) >= TRAINING
        assert (numbers[0], numbers[-1]) == (TRAINING + errors.argmin(), TRAINING + errors.argmax())
        r2 = r2_score(found[TRAINING:], exact[TRAINING:], mean_image)
        assert f"$R^2$ = {r2:.3f}" in titles[dim]


def test_refuses_a_ripsnet_of_other_images_and_a_missing_one(teacher):
    path = spec_file(clouds_folder(teacher), 0)
    spec = ImageSpec.load(path)
    checkpoint.write_json(path, spec.to_dict() | {"sigma": 0.5})
    with pytest.raises(UserError, match="fitted to other images"):
        teacher.main(teacher)
    (ripsnet_folder(clouds_folder(teacher), 0, "mean") / "best.pth").unlink()
    with pytest.raises(UserError, match="no RipsNet there; fit it with train_ripsnet.py"):
        teacher.main(teacher)
