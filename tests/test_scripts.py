"""Every script as its users meet it: help, one clear line for bad input, and what may be added from outside."""

import importlib
import pickle
import re
import subprocess
import sys
import textwrap
import urllib.request
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from support.running import POINTS, TEACHER, call, make_clouds, refused, work_in
from torch import nn

import dataset
import distiller_zoo
import evaluate
import generate_PCD_PI
import models
import train_ripsnet
import train_student
import train_teacher
from dataset import DatasetInfo, dataset_dict
from distiller_zoo import Method, Output, Pair, distiller_dict
from helper.cli.parser import Parser, run
from helper.files import checkpoint
from models import model_dict

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [path.stem for path in sorted(ROOT.glob("*.py"))]
NO_CUDA = ("--device", "cpu")
# What each script needs; a case adds what is wrong.
ENOUGH = {
    train_teacher: ("--model", "resnet8", "--dataset", "noise", "--epochs", 1),
    generate_PCD_PI: ("--path_t", TEACHER, "--dataset", "noise", "--batch_size", POINTS, "--passes", 1),
    train_ripsnet: ("--path_t", TEACHER, "--dataset", "noise", "--batch_size", POINTS, "--epochs", 1),
    train_student: ("--path_t", TEACHER, "--dataset", "noise", "--model_s", "resnet8", "--epochs", 1),
    evaluate: ("--path", TEACHER, "--dataset", "noise"),
}
REGISTRIES = ("model_dict", "distiller_dict", "dataset_dict")
BAD_INPUT = [
    (train_teacher, "--model resnet57", "argument --model: unknown model 'resnet57': did you mean 'resnet56'?"),
    (train_teacher, "--model resnet50", "ImageNet's is 'resnet50_imagenet', that for 32 x 32 images 'ResNet50'"),
    (train_teacher, "--epochs 0", "argument --epochs: found '0', expected a whole number at least 1"),
    (train_teacher, "--epochs 1.5", "argument --epochs: found '1.5', expected a whole number at least 1"),
    (train_teacher, "--lr nan", "argument --lr: found 'nan', expected a number at least 0 and at most 1000"),
    (train_teacher, "--lr inf", "argument --lr: found 'inf'"),
    (train_teacher, "--lr_decay_epochs 180,150", "found 180,150, expected ascending epochs, such as 150,180,210"),
    (train_teacher, "--lr_decay_epochs 150,x", "argument --lr_decay_epochs: found 'x', expected a whole number"),
    (train_teacher, "--momentum 2", "argument --momentum: found '2', expected a number at least 0 and at most 1"),
    (train_teacher, "--dataset cifar1000", "argument --dataset: invalid choice: 'cifar1000'"),
    (train_teacher, "--device gpu", "argument --device: found 'gpu', expected cpu, cuda or cuda:<index>"),
    (train_teacher, "--device cuda", "found 'cuda', but this PyTorch sees no CUDA device; use --device cpu"),
    (train_teacher, "--device mps", "argument --device: found 'mps', expected cpu, cuda or cuda:<index>"),
    (train_teacher, "--seed 99999999999999999999", "argument --seed: found '99999999999999999999', expected"),
    (train_teacher, "--name ../up", "argument --name: found '../up', expected the name of a folder, without slashes"),
    (train_teacher, "--batch 3", "unrecognized arguments: --batch 3 (see train_teacher.py --help)"),
    (train_student, "--model_s wrn40_2", "did you mean 'wrn_40_2'?"),
    (train_student, "--distill dk", "unknown method 'dk': expected one of kd"),
    (train_student, "--tda_layer_t 1", "argument --tda_layer_t: found '1', expected a whole number at most 0"),
    (
        train_student,
        "-d 5 --topology wasserstein --tda_layer_s -99",
        "--tda_layer_s: found -99, expected 0 (logits) or -1",
    ),
    (train_student, "--kd_T 0", "argument --kd_T: found '0'"),
    (train_student, "-d -1", "found '-1', expected a number at least 0"),
    (train_student, "--delta inf", "argument -d/--delta: found 'inf'"),
    (train_student, "--beta 1", "--beta: found 1, but --distill kd has no loss beside KD"),
    (train_student, "--path_t nowhere/best.pth", "nowhere/best.pth: no such file"),
    (train_student, "--path_t save_t_models", "save_t_models: a folder, expected a checkpoint in it"),
    (train_student, "--dataset digits", "best.pth: trained on noise, found --dataset digits; give the same"),
    (train_student, "--path_t bare.pth --model_t resnet8 --dataset digits", "for 3 classes, but --dataset has 10"),
    (train_student, "--ripsnet x.pth", "--ripsnet: has no effect with"),
    (train_student, "--model_t resnet20", "--model_t: found resnet20, but save_t_models/teacher/best.pth holds"),
    (generate_PCD_PI, "--tda_layer_t -99", "--tda_layer_t: found -99, expected 0 (logits) or -1 (pooled vector) to -5"),
    (generate_PCD_PI, "--batch_size 71", "--batch_size: found 71, but noise has only 70 training images"),
    (generate_PCD_PI, "--batch_size 1", "--batch_size: found 1, expected at least 2"),
    (generate_PCD_PI, "--passes -1", "argument --passes: found '-1'"),
    (generate_PCD_PI, "--num_clouds 6", "--num_clouds: found 6, but --passes 1 make only 5"),
    (train_ripsnet, "--operator max", "argument --operator: invalid choice: 'max'"),
    (train_ripsnet, "--patience 0", "argument --patience: found '0'"),
    (evaluate, "--path bare.pth", "bare.pth: the file does not name its architecture; give it with --model"),
    (evaluate, "--path bare.pth --model resnet20", "bare.pth: the weights do not fit resnet20"),
]


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    work_in(tmp_path, monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    checkpoint.save(Path("bare.pth"), checkpoint.load(TEACHER)["model"])


def all_actions(parser):
    """The options of a parser and of the commands below it."""
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for command in action.choices.values():
                yield from all_actions(command)
        else:
            yield action


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_explains_the_script_and_every_option(name, monkeypatch, capsys):
    script = importlib.import_module(name)
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        run(script.main, script.get_args_parser)
    assert stopped.value.code == 0
    assert script.__doc__.splitlines()[0] in capsys.readouterr().out
    unexplained = [action.dest for action in all_actions(script.get_args_parser()) if not action.help]
    assert not unexplained


@pytest.mark.parametrize(
    "dataset, schedule",
    [("cifar100", ("240", "150,180,210", "0.0005", "64")), ("imagenet", ("100", "30,60,90", "0.0001", "256"))],
)
def test_help_has_the_schedule_of_the_data_set_that_is_named(dataset, schedule, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_teacher.py", "--dataset", dataset, "--help"])
    with pytest.raises(SystemExit):
        run(train_teacher.main, train_teacher.get_args_parser)
    text = " ".join(capsys.readouterr().out.split())
    for what, value in zip(
        ("the training images", "after these epochs", "in its gradient", "a step"), schedule, strict=True
    ):
        assert f"{what} (default: {value})" in text.replace("AFTER", "after")


@pytest.mark.parametrize("script, options, what", BAD_INPUT, ids=lambda value: getattr(value, "__name__", None))
def test_bad_input_is_one_line(monkeypatch, capsys, script, options, what):
    assert what in refused(monkeypatch, capsys, script, *ENOUGH[script], *options.split())
    assert not Path("save_s_models").exists() and not Path("results").exists()


def test_a_refusal_is_one_line_of_a_real_process(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "make_tables.py", "--out", "x.tex"], cwd=tmp_path, capture_output=True, text=True
    )
    line = "make_tables.py: --out: found x.tex, expected the Markdown file; the LaTeX file is written beside it\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def test_every_script_computes_with_kernels_that_repeat_themselves_and_without_tf32(monkeypatch):
    flags = (torch.backends.cudnn, "deterministic", True), (torch.backends.cudnn, "benchmark", False)
    flags += (torch.backends.cudnn, "allow_tf32", False), (torch.backends.cuda.matmul, "allow_tf32", False)
    for where, name, wanted in flags:
        setattr(where, name, not wanted)
    monkeypatch.setattr("sys.argv", ["evaluate.py"])
    run(lambda args: None, Parser)
    assert [getattr(where, name) for where, name, _ in flags] == [wanted for _, _, wanted in flags]
    assert all("    run(main, get_args_parser" in (ROOT / f"{name}.py").read_text() for name in SCRIPTS)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train_student", "reproduce"])
def test_a_reader_that_goes_away_gets_no_traceback(script):
    process = subprocess.Popen(
        [sys.executable, ROOT / f"{script}.py", "--list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()  # as `| head` does when it has its lines
    assert (process.stderr.read(), process.wait()) == ("", 1)


class Anything:
    pass


@pytest.mark.parametrize(
    "content, what",
    [
        (b"", "not a checkpoint"),
        (b"no checkpoint", "not a checkpoint"),
        (pickle.dumps(Anything()), "not a checkpoint"),
        (Anything(), f"holds {__name__}.Anything, which is not run; save its state_dict instead"),
        ({"model": {}}, "no weights found"),
        ({"model": [1.0]}, "no weights found"),
        ([1.0, 2.0], "no weights found"),
        (torch.zeros(3), "no weights found"),
        ({"arch": "resnet9", "model": {"fc.bias": torch.zeros(3)}}, "unknown model 'resnet9'"),
        ({"arch": "resnet8", "model": {"fc.bias": torch.zeros(3)}}, "the weights do not fit resnet8"),
    ],
)
@pytest.mark.parametrize("script, option", [(evaluate, "--path"), (train_student, "--path_t")])
def test_foreign_files_are_refused(monkeypatch, capsys, script, option, content, what):
    if isinstance(content, bytes):
        Path("foreign.pth").write_bytes(content)
    else:
        torch.save(content, "foreign.pth")
    line = refused(monkeypatch, capsys, script, *ENOUGH[script], option, "foreign.pth")
    assert "foreign.pth: " in line and what in line


def test_no_data_and_no_network_says_which_file_to_put_where(monkeypatch, capsys):
    def offline(*_, **__):
        raise URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    line = refused(monkeypatch, capsys, train_teacher, "--data_dir", "nothing", *NO_CUDA)
    assert "no intact CIFAR100 in nothing" in line and "put cifar-100-python.tar.gz from" in line
    assert str(Path("nothing").resolve()) in line


@pytest.mark.parametrize("spelling", ["KD", "kd", "Kd"])
def test_methods_are_found_in_any_spelling(spelling):
    options = map(str, ENOUGH[train_student])
    assert train_student.get_args_parser().parse_args([*options, "--distill", spelling]).distill == "kd"


class MyLoss(nn.Module):
    def __init__(self, pair):
        super().__init__()
        self.map = nn.Linear(pair.shapes_s[-1][0], pair.shapes_t[-1][0])

    def forward(self, student, teacher, batch):
        return (self.map(student.features[-1]) - teacher.features[-1]).square().mean()


class MyNet(nn.Module):
    """Its classifier is not the last part of its state dict."""

    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(8, num_classes)
        self.conv, self.bn = nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8)

    def forward(self, x, is_feat=False, preact=False):
        features = [torch.relu(self.bn(self.conv(x)))]
        features.append(features[0].mean((2, 3)))
        logits = self.head(features[-1])
        return (features, logits) if is_feat else logits


def test_a_method_from_outside_trains_under_its_name(monkeypatch):
    monkeypatch.setitem(distiller_dict, "mine", Method("Mine", "citation", MyLoss, features=(-1,), trainable=True))
    call(train_student, *ENOUGH[train_student], *NO_CUDA, "--distill", "MINE", "--name", "run")
    header, row = (line.split(",") for line in Path("save_s_models/run/log.csv").read_text().splitlines())
    log = dict(zip(header, row, strict=True))
    assert float(log["other"]) > 0 and float(log["loss"]) == pytest.approx(float(log["ce"]) + float(log["other"]))
    assert "kd" not in log and float(log["grad_other"]) > 0
    assert "other.map.weight" in checkpoint.load("save_s_models/run/last.pth")["objective"]
    assert not any("map" in name for name in checkpoint.load("save_s_models/run/best.pth")["model"])


@pytest.mark.parametrize("given, expected", [
    ((), ("raw", 1, 0.5, False, True)),
    (("--set", "raw=false"), ("raw", 1, 0.5, False, False)),
    (("--set", "squared=True", "power=2", "name=a=b"), ("a=b", 2, 0.5, True, True)),
])  # fmt: skip
def test_options_of_a_method_from_outside_arrive_as_they_are_given(monkeypatch, given, expected):
    class Recording(MyLoss):
        def __init__(self, pair, *, name="raw", power=1, scale=0.5, squared=False, raw=True):
            super().__init__(pair)
            found.append((name, power, scale, squared, raw))

    found = []
    mine = Method("Mine", "citation", Recording, features=(-1,), trainable=True)
    monkeypatch.setitem(distiller_dict, "mine", mine)
    call(train_student, *ENOUGH[train_student], *NO_CUDA, "--distill", "mine", *given, "--name", "run")
    assert found == [expected]


def test_options_of_a_method_from_outside_that_no_text_gives_are_refused(monkeypatch, capsys):
    class Unset(MyLoss):
        def __init__(self, pair, *, squared=False, weights=None):
            super().__init__(pair)

    monkeypatch.setitem(distiller_dict, "mine", Method("Mine", "citation", Unset, features=(-1,), trainable=True))
    student = (*ENOUGH[train_student], *NO_CUDA, "--distill", "mine")
    line = refused(monkeypatch, capsys, train_student, *student, "--set", "squared=2")
    assert "--set: found 'squared=2', expected squared=<bool>" in line
    line = refused(monkeypatch, capsys, train_student, *student)
    assert "method Mine: the default of its option weights is None, expected one of bool, int, float, str" in line


def test_a_model_and_a_data_set_from_outside_pass_through_all_stages(monkeypatch, capsys):
    def stripes(data_dir):
        images = np.zeros((60, 24, 24, 3), dtype=np.uint8)
        images[::2, ::2] = 255
        images[1::2, :, ::2] = 200
        return (images[:40], np.arange(40) % 2), (images[40:], np.arange(20) % 2)

    mine = DatasetInfo("stripes", 2, (0.5,) * 3, (0.5,) * 3, flip=False, load=stripes, image_size=24)
    monkeypatch.setitem(dataset_dict, "stripes", mine)
    monkeypatch.setitem(model_dict, "mynet", MyNet)
    data = ("--dataset", "stripes", "--batch_size", 8, *NO_CUDA)
    teacher = ("--path_t", "save_t_models/mynet_stripes_n8_trial1/best.pth")
    call(train_teacher, "--model", "mynet", "--epochs", 3, *data)
    make_clouds(*teacher, *data)
    call(train_ripsnet, *teacher, *data, "--epochs", 2)
    call(train_student, *teacher, *data, "--model_s", "mynet", "--epochs", 3, "-d", 5, "--name", "run")
    call(evaluate, "--path", "save_s_models/run/best.pth", "--dataset", "stripes", *NO_CUDA)
    assert re.search(r"test images of stripes.*\n.* mynet\ntop-1 accuracy, % +100.00\n", capsys.readouterr().out, re.S)


@pytest.mark.parametrize("answer, what", [
    (lambda features, logits: logits, "expected model(x, is_feat=True, preact=False) -> (features, logits), the last"),
    (lambda features, logits: (features[:1], logits), "found features [(1, 8, 7, 7)] and logits (1, 3) for one image"),
    (lambda features, logits: (features, logits[:, :2]), "and logits (1, 2) for one image, expected model(x, is_feat"),
])  # fmt: skip
def test_a_model_that_does_not_answer_as_it_should_does_not_train(monkeypatch, capsys, answer, what):
    class Wrong(MyNet):
        def forward(self, x, is_feat=False, preact=False):
            found = super().forward(x, is_feat)
            return answer(*found) if is_feat else found

    monkeypatch.setitem(model_dict, "wrong", Wrong)
    line = refused(monkeypatch, capsys, train_teacher, "--model", "wrong", "--dataset", "noise", *NO_CUDA)
    assert "model wrong: " in line and what in line and not Path("save_t_models/wrong_noise_trial1").exists()
    monkeypatch.setitem(model_dict, "wrong", MyNet)
    call(train_teacher, "--model", "wrong", "--dataset", "noise", *NO_CUDA, "--epochs", 1, "--name", "right")
    monkeypatch.setitem(model_dict, "wrong", Wrong)
    teacher = ("--path_t", "save_t_models/right/best.pth", "--dataset", "noise", *NO_CUDA)
    for script, options in ((train_student, ("--model_s", "resnet8")), (generate_PCD_PI, ())):
        assert what in refused(monkeypatch, capsys, script, *teacher, *options)


def test_a_name_with_a_slash_does_not_become_a_folder_in_a_folder(monkeypatch, capsys):
    monkeypatch.setitem(model_dict, "my/net", MyNet)
    options = ("--dataset", "noise", *NO_CUDA, "--epochs", 1)
    line = refused(monkeypatch, capsys, train_teacher, "--model", "my/net", *options)
    assert "--name: found none, and my/net_noise_" in line and "give one without slashes" in line
    monkeypatch.setitem(distiller_dict, "mine", Method("My/loss", "citation", MyLoss, features=(-1,), trainable=True))
    student = (*ENOUGH[train_student], *NO_CUDA, "--distill", "mine", "--epochs", 1)
    assert "--name: found none, and " in refused(monkeypatch, capsys, train_student, *student)
    call(train_student, *student, "--name", "run")
    assert Path("results/runs/run.csv").is_file()


def test_the_readme_s_own_model_method_and_data_set_work_when_pasted(monkeypatch, tmp_path, capsys):
    """Each block is run at the end of the file that README names for it."""
    section = (ROOT / "README.md").read_text().split("## Your own model, method, data set")[1].split("\n## ")[0]
    blocks = [
        textwrap.dedent(block) for block in re.findall(r"(?:^    .*\n|^\n)+", section, re.MULTILINE) if block.strip()
    ]
    for module, registry, block in zip((models, distiller_zoo, dataset), REGISTRIES, blocks, strict=True):
        monkeypatch.setattr(module, registry, getattr(module, registry).copy())
        exec(block, vars(module).copy())
    features, logits = models.model_dict["tiny"](num_classes=7)(torch.rand(2, 3, 8, 8), is_feat=True)
    assert features[-1].shape == (2, 16) and logits.shape == (2, 7)
    loss = distiller_zoo.distiller_dict["mine"].loss(Pair([(16,)], [(5,)]))
    assert loss(Output([torch.rand(2, 16)], None), Output([torch.rand(2, 5)], None), None).shape == ()
    for split in ("train", "test"):
        np.savez(tmp_path / split, images=np.zeros((4, 32, 32, 3), np.uint8), labels=np.arange(4))
    train, test = dataset.load_dataset("mine", str(tmp_path))
    assert len(train) == len(test) == 4
    monkeypatch.setitem(dataset_dict, "mine", dataset.dataset_dict["mine"])
    file = tmp_path / "train.npz"
    whole = file.read_bytes()
    options = ("--dataset", "mine", "--data_dir", tmp_path)

    def reason():
        line = refused(monkeypatch, capsys, train_teacher, *options, *NO_CUDA)
        return line.split(f"--dataset mine, --data_dir {tmp_path}: ")[1]

    file.write_bytes(whole[:-30])
    assert reason().startswith("BadZipFile (")
    np.savez(file, pictures=0)
    assert reason().startswith("KeyError (")
    file.unlink()
    assert reason().startswith(f"{file}: No such file or directory")
