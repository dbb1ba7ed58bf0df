"""ImageNet's settings from the command line to the commands of its tables, without its images."""

import importlib

import pytest

import evaluate
from dataset import dataset_dict
from helper.cli.parser import read
from helper.settings import Clouds


def parsed(script, *options):
    """The options of a script as `run` reads them, with the data set's own defaults."""
    parser = importlib.import_module(script).get_args_parser()
    words = [str(option) for option in options]
    parser.adopt_recipe(words)
    return parser.parse_args(words)


IMAGENET = ("--path_t", "t.pth", "--dataset", "imagenet", "--device", "cpu")


def test_the_epochs_of_a_data_set_are_those_of_networks_not_of_a_fit():
    assert parsed("train_teacher", "--dataset", "imagenet").epochs == 100
    assert parsed("train_ripsnet", *IMAGENET).epochs == 25000


@pytest.mark.parametrize(
    "script, command",
    [
        ("generate_PCD_PI", ()),
        ("train_ripsnet", ()),
        ("train_student", ("--model_s", "resnet18_imagenet")),
        ("evaluate", ("--path", "s.pth")),
        ("visualize", ("pi",)),
        ("visualize", ("scatter",)),
        ("visualize", ("diagram",)),
    ],
)
def test_every_script_takes_the_clouds_of_the_data_set(script, command):
    clouds = read(parsed(script, *command, *IMAGENET), Clouds)
    assert (clouds.cloud_size, clouds.points) == (64, 64)
    clouds = read(parsed(script, *command, *IMAGENET, "--cloud_size", 32), Clouds)
    assert clouds.points == 32
    clouds = read(parsed(script, *command, "--path_t", "t.pth", "--batch_size", 32, "--device", "cpu"), Clouds)
    assert (clouds.cloud_size, clouds.points) == (None, 32)


def test_a_network_is_scored_without_topology():
    args = parsed("evaluate", "--path", "s.pth", "--dataset", "imagenet", "--device", "cpu")
    evaluate.check_options(args, evaluate.comparison_of(args))
    assert args.batch_size == dataset_dict["imagenet"].recipe.batch_size
