"""reproduce.py: the list of experiments against the published settings and the scripts' own parsers, the commands and
their order, and what is skipped or resumed."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

import reproduce
from distiller_zoo import Method, distiller_dict
from helper.cli.parser import read
from helper.clouds.store import claim, read_origin
from helper.errors import UserError
from helper.experiments import catalogue, plan
from helper.experiments.catalogue import FIGURES, TABLES, arm_variant, plain, scaled
from helper.experiments.listing import settings_of
from helper.experiments.plan import OPTIONS_OF, Planner, find_arms, in_order, student_settings
from helper.files.paths import TEACHERS, clouds_folder, quality_file
from helper.settings import CloudMaking, Clouds, Data, Loss, Repetition, RipsNetChoice, Training, declared
from helper.student.names import method_name, student_name
from helper.student.weights import resolve

ROOT = Path(__file__).resolve().parent.parent
T56 = "save_t_models/resnet56_cifar100_trial1/best.pth"
STUDENT = f"train_student.py --path_t {T56} --model_s resnet20"


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce, "visible_gpus", lambda *_: [])


def call(*options):
    reproduce.main(reproduce.get_args_parser().parse_args([str(option) for option in options]))


@pytest.fixture
def dry_run(capsys):
    """A function of options: the lines of --dry_run, the scripts without their folder."""

    def lines(*options):
        call(*options, "--dry_run")
        found = capsys.readouterr().out.splitlines()
        return [line.replace(f"python {os.path.relpath(ROOT)}/", "") for line in found]

    return lines


def parsed(words):
    """(script, its options as its own parser reads them)."""
    script, *options = words
    parser = importlib.import_module(Path(script).stem).get_args_parser()
    parser.adopt_recipe(options)
    return Path(script).stem, parser.parse_args(options)


def planned(table, arms=None):
    planner = Planner()
    planner.table(table, list(table.rows), list(arms or table.arms), 1)
    return planner.jobs


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


# The list of experiments


def test_settings_are_the_defaults_of_the_scripts():
    needed = {"train_teacher": [], "train_student": ["--model_s", "resnet8"]}
    for script in OPTIONS_OF:
        options = needed.get(script, []) + ([] if script == "train_teacher" else ["--path_t", "x"])
        _, args = parsed([script, *options])
        for name, value, _ in settings_of(script):
            found = getattr(args, name)
            found = tuple(found) if isinstance(found, list) else found
            own = "mean" if (script, name) == ("train_ripsnet", "operator") else value
            assert found == own, (script, name)


def test_published_settings_are_the_published_ones():
    """Written out from the released code, and nothing else is called published but what is by pair or by rule."""
    sgd = {"epochs": 240, "lr_decay_epochs": (150, 180, 210), "lr_decay_rate": 0.1, "momentum": 0.9, "lr": None}
    sgd |= {"batch_size": 64, "weight_decay": 0.0005, "dataset": "cifar100"}
    images = {"tda_layer_t": -1, "dim": "0", "sigma_rule": "released", "resolution": 20, "range": "all"}
    images |= {"batch_size": 64, "cloud_size": None, "dataset": "cifar100"}
    ripsnet = {"epochs": 25000, "patience": 50, "batch_clouds": 64, "lr": 0.0005, "ripsnet_clouds": None}
    expected = {
        "train_teacher": sgd,
        "generate_PCD_PI": images | {"passes": 256, "num_clouds": None},
        "train_ripsnet": images | ripsnet,
        "train_student": sgd | images | {"kd_T": None, "tda_layer_s": -1, "ripsnet_clouds": None},
    }
    for script in OPTIONS_OF:
        values = settings_of(script)
        published = {name: value for name, value, source in values if source.startswith("published: ")}
        assert published == expected[script]
        assert {source.split()[0] for _, _, source in values} <= {"published:", "assumed:", "by"}


def test_the_catalogue_loads_no_pytorch_and_names_the_methods_of_the_registry():
    code = "import sys, helper.experiments.catalogue; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    assert catalogue.BASELINES == tuple(method.name for method in distiller_dict.values() if method.loss)
    for name in plan.methods():
        kinds = {"exact": "exact", "wasserstein": "wasserstein"}
        end = name.split("+Top")[-1].removeprefix("TopKD").removeprefix("-")
        with_topology = "+Top" in name or name.startswith("TopKD")
        assert catalogue.topology(name) == (kinds.get(end, "ripsnet") if with_topology else None)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("epochs", [None, 3])
def test_arm_variant_is_what_the_run_of_an_arm_has_in_its_row(name, epochs):
    table = scaled(TABLES[name], epochs or TABLES[name].student.epochs)
    for row in table.rows:
        for arm in table.arms:
            settings = student_settings(table, row, arm)
            own = plan.own_epochs(table, row, settings.loss.distill)
            parts = settings.variant.split()
            shrunk = [part for part in parts if part.startswith(("warmup", "first", "ramp"))]
            assert [part for part in parts if part not in shrunk] == arm_variant(table, row, arm).split()
            assert len(shrunk) == len(own)


def test_the_rows_are_those_of_the_papers_tables():
    pairs = """WRN-40-2 > WRN-16-2, WRN-40-2 > WRN-40-1, ResNet56 > ResNet20, ResNet110 > ResNet20,
    ResNet110 > ResNet32, ResNet32x4 > ResNet8x4, VGG13 > VGG8"""
    others = """VGG13 > MobileNetV2, ResNet50 > MobileNetV2, ResNet50 > VGG8, ResNet32x4 > ShuffleNetV1,
    ResNet32x4 > ShuffleNetV2, WRN-40-2 > ShuffleNetV1"""
    for name, text in (("cifar100_homogeneous", pairs), ("cifar100_heterogeneous", others)):
        expected = [pair.lower().replace("shufflenet", "shuffle").replace("-", "_").split() for pair in text.split(",")]
        assert [row.lower().split(":") for row in TABLES[name].rows] == [[t, s] for t, _, s in expected]


def test_only_two_pairs_have_published_weights(capsys):
    call("--list")
    lines = capsys.readouterr().out.splitlines()
    rows = {row for table in TABLES.values() for row in table.rows}
    found = {line.split()[0]: line for line in lines if line.strip() and line.split()[0] in rows}
    assert found.keys() == rows
    assert {row for row, line in found.items() if "published: " in line} == {"resnet56:resnet20", "wrn_40_2:ShuffleV1"}
    assert "lr 0.05 [published], alpha 2, delta 5, mean pooling [published: " in found["resnet56:resnet20"]
    assert "lr 0.01 [published], alpha 4, delta 5, sum pooling [published: " in found["wrn_40_2:ShuffleV1"]
    assert "lr 0.1 [assumed: the field's], alpha 1" in found["resnet34_imagenet:resnet18_imagenet"]
    text = "\n".join(lines)
    assert all(f"{name}: " in text for name in (*TABLES, *FIGURES)) and "None" not in text
    assert "    5 seeds (3 of TopKD-wasserstein; 1 of CE, CE+Top-exact, TopKD-exact delta 1, " in text
    assert "    1 seed; data set imagenet" in text and "    3 seeds [assumed]" in text
    assert "TopKD-exact layer -3 (tda_layer_t -3, tda_layer_s -3)" in " ".join(text.split())


@pytest.mark.parametrize("name", TABLES)
def test_every_arm_is_marked_and_has_a_name_of_its_own(name):
    arms = TABLES[name].arms
    assert len({arm.name for arm in arms}) == len(arms)
    assert all(arm.source.startswith(("published: ", "assumed: ")) for arm in arms)
    assert TABLES[name].source.startswith(("published: ", "assumed: "))
    accepted = {option for section in (Loss, Clouds, CloudMaking) for option in declared(section)}
    assert all(arm.options.keys() <= accepted for arm in arms)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("epochs", [pytest.param(None, marks=pytest.mark.slow), 3])
def test_every_experiment_is_understood_and_its_stages_agree(name, epochs):
    """The scripts' own parsers and naming read the commands; what stage 4 looks for is what stages 2 and 3 write."""
    table = scaled(TABLES[name], epochs or TABLES[name].student.epochs)
    for job in (found := planned(table)).values():
        script, args = parsed(job.command)
        if script == "train_teacher":
            assert job.folder == TEACHERS / job.name
            assert (args.name or f"{args.model}_{args.dataset}_trial{args.trial}") == job.name
            continue
        if script == "evaluate":
            assert (job.folder, job.done) == (TEACHERS / job.name, args.adopt) == (args.adopt.parent, args.adopt)
            continue
        teacher = re.split("_cifar100|_digits|_torchvision", Path(args.path_t).parent.name)[0]
        clouds = read(args, Clouds)
        folder = clouds_folder(args.path_t, clouds)
        if script == "generate_PCD_PI":
            assert (job.folder, job.done) == (folder, quality_file(folder, int(args.dim)))
        elif script == "train_ripsnet":
            assert job.folder == folder / read(args, RipsNetChoice).folder_name(int(args.dim))
        else:
            sections = (read(args, section) for section in (Loss, Clouds, Data, Training, Repetition))
            settings = resolve(*sections, teacher, args.model_s)
            assert job.name == (args.name or student_name(settings))
            assert job.name.startswith(student_name(settings, "").removesuffix("trial1"))
            needs = {found[need].folder for need in job.needs}
            assert Path(args.path_t).parent in needs
            expected = {folder} if settings.loss.topology == "exact" else set()
            if settings.loss.topology == "ripsnet":
                expected = {folder / settings.loss.folder_name(dim) for dim in clouds.dims}
            assert needs - {Path(args.path_t).parent} == expected


@pytest.mark.parametrize("name", TABLES)
def test_every_arm_trains_the_method_it_names(name):
    table = TABLES[name]
    for arm in table.arms:
        for row in table.rows:
            assert method_name(student_settings(table, row, arm)) == arm.method
    stems = {(row, stem(table, row, arm.name)) for row in table.rows for arm in table.arms}
    equal = 2 if name == "cifar100_small" else 0  # delta 5 of the sweep is TopKD-exact and TopKD-wasserstein itself
    assert len(stems) == len(table.rows) * len(table.arms) - equal


def stem(table, row, arm):
    """The names of the arm's students without their trial."""
    planner = Planner()
    return planner.student(table, row, table.arm(arm), 1).removesuffix("_trial1")


def test_names_of_runs():
    main, small = TABLES["cifar100_homogeneous"], TABLES["cifar100_small"]
    assert stem(main, "resnet56:resnet20", "TopKD-exact") == "resnet56-resnet20_cifar100_TopKD-exact"
    assert stem(scaled(main, 24), "vgg13:vgg8", "CE") == "vgg13-vgg8_cifar100_CE_e24"
    assert stem(small, "resnet20:resnet8", "TopKD-exact delta 25") == "resnet20-resnet8_cifar100_TopKD-exact_d25_small"
    assert stem(scaled(small, 240), "resnet20:resnet8", "CE") == "resnet20-resnet8_cifar100_CE_small_e240"
    assert stem(TABLES["digits"], "resnet20:resnet8", "TopKD") == "resnet20-resnet8_digits_TopKD_sum_e12"
    points = TABLES["ablation_points"]
    assert stem(points, "resnet56:resnet20", "KD-control n 8") == "resnet56-resnet20_cifar100_KD-control_n8"
    assert stem(points, "resnet56:resnet20", "TopKD n 64") == "resnet56-resnet20_cifar100_TopKD"
    assert plan.teacher_name(small, "resnet20") == "resnet20_cifar100_small_trial1"


def test_names_show_a_precision_that_is_not_the_schedule_s():
    """A run in float32 must not be taken for one in bf16, which is finished; the teacher is that of both."""
    row, small, ablation = "resnet20:resnet8", TABLES["cifar100_small"], TABLES["cifar100_small_ablation"]
    arm, name = small.arm("TopKD"), "resnet20-resnet8_cifar100_TopKD_small"

    def student(table, amp=None):
        return Planner(amp=amp).student(table, row, arm, 1)

    assert student(small) == student(small, "bf16") == student(ablation, "bf16") == f"{name}_trial1"
    assert student(ablation) == student(ablation, "off") == student(small, "off") == f"{name}_float32_trial1"
    assert student(scaled(small, 4), "off") == f"{name}_e4_float32_trial1"
    main = TABLES["cifar100_homogeneous"]
    assert student(scaled(main, 24), "bf16").endswith("_TopKD_e24_bf16_trial1")
    assert student(main, "bf16").endswith("_TopKD_bf16_trial1")
    assert plan.teacher_name(ablation, "resnet20") == plan.teacher_name(small, "resnet20")


SHIPPED = Path("ripsnet/resnet20_cifar100_small_trial1/layer-1_n64_eval_released")


def test_the_small_ablation_begins_with_the_shipped_teacher_and_its_ripsnets(monkeypatch):
    monkeypatch.chdir(ROOT)
    table = TABLES["cifar100_small_ablation"]
    jobs = planned(table)
    teacher = jobs["resnet20_cifar100_small_trial1"]
    assert teacher.finished and not any(job.command[0].startswith("train_teacher") for job in [*jobs.values()][1:])
    fits = [job for job in jobs.values() if parsed(job.command)[0] == "train_ripsnet"]
    assert all(job.finished for job in fits if job.clouds == SHIPPED)
    students = [parsed(job.command)[1] for job in jobs.values() if parsed(job.command)[0] == "train_student"]
    assert len(students) == 19 and {args.amp for args in students} == {"off"}
    assert {args.epochs for args in students} == {8}
    assert plan.missing(jobs.values()) == []


def test_the_clouds_of_a_shipped_set_are_made_again_for_a_ripsnet_that_it_lacks(dry_run):
    for folder in (SHIPPED, Path("save_t_models/resnet20_cifar100_small_trial1"), Path("results/runs")):
        shutil.copytree(ROOT / folder, folder)
    finished = [f"# {SHIPPED}/{name}: finished" for name in ("spec_dim0.json", "spec_dim1.json")]
    options = ("--table", "cifar100_small_ablation", "--trials", 2)
    assert set(finished) <= set(dry_run(*options))
    shutil.rmtree(SHIPPED / "ripsnet_dim0_sum")
    teacher = "save_t_models/resnet20_cifar100_small_trial1/best.pth"
    made = [f"generate_PCD_PI.py --path_t {teacher} --passes 16 --seed 1"]
    made.append(f"generate_PCD_PI.py --path_t {teacher} --dim 1 --passes 16 --seed 1")
    lines = dry_run(*options)
    assert set(made) <= set(lines) and not set(finished) & set(lines)
    claim(SHIPPED, read_origin(SHIPPED / "spec_dim0.json"))
    chunks = [f"{number:05d}.npy" for number in range(25)]  # of 512 clouds, 12,496 in all
    for kind in ("clouds", "images_dim0"):
        for chunk in chunks:
            touch(SHIPPED / kind / chunk)
    lines = dry_run(*options)  # the images of dimension 1 are missing still
    assert finished[0] in lines and made[1] in lines
    for chunk in chunks:
        touch(SHIPPED / "images_dim1" / chunk)
    assert set(finished) <= set(dry_run(*options))
    for kind in ("clouds", "images_dim0", "images_dim1"):
        shutil.rmtree(SHIPPED / kind)
    lines = dry_run(*options, "--methods", "TopKD-exact")  # for which the spec is enough
    assert finished[0] in lines and not set(made) & set(lines)
    lines = dry_run("--figure", "pi", "--row", "resnet20:resnet8")
    assert made[0] in lines


def test_the_cache_is_for_those_that_can_read_it_and_shows_in_their_names():
    main, small, layers = (TABLES[name] for name in ("cifar100_homogeneous", "cifar100_small", "ablation_layer"))
    planner = Planner(teacher_cache=True)

    def job(table, row, arm):
        return planner.jobs[planner.student(table, row, table.arm(arm), 1)]

    for arm, cached in (("TopKD", True), ("KD", True), ("CRD", True), ("FitNet", False), ("MLKD", False)):
        found = job(main, "resnet56:resnet20", arm)
        assert ("--teacher_cache" in found.command, "_cache_" in found.name) == (cached, cached), arm
    found = job(small, "resnet20:resnet8", "TopKD")
    assert found.name == "resnet20-resnet8_cifar100_TopKD_small_cache_trial1" and "--teacher_cache" in found.command
    for arm, cached in (("TopKD-exact layer 0", True), ("TopKD-exact layer -3", False)):
        found = job(layers, "resnet56:resnet20", arm)
        clouds = planner.jobs[found.needs[-1]]
        assert [("--teacher_cache" in each.command) for each in (found, clouds)] == [cached, cached], arm
    teachers = [each for each in planner.jobs.values() if each.command[0] == "train_teacher.py"]
    assert teachers and not any("--teacher_cache" in each.command for each in teachers)


def test_the_shipped_runs_are_found_as_finished(monkeypatch):
    monkeypatch.chdir(ROOT)
    table = TABLES["cifar100_small"]
    planner = Planner()
    planner.table(table, list(table.rows), list(table.arms), None)
    finished = {job.name for job in planner.jobs.values() if job.finished}
    assert finished >= {path.stem for path in Path("results/runs").glob("resnet20*_small_trial*.csv")}
    assert "resnet20-resnet8_cifar100_TopKD_small_trial1" in finished and "resnet20_cifar100_small_trial1" in finished


def test_scaled_schedules_by_hand():
    table = scaled(TABLES["ablation_clouds"], 24)
    assert table.teacher == table.student == Training(epochs=24, lr_decay_epochs=(15, 18, 21))
    assert table.making.passes == 26  # 25.6
    assert [arm.options.get("ripsnet_clouds") for arm in table.arms] == [100, 500, 2000, 7500, None]
    table = scaled(TABLES["ablation_points"], 24)
    assert [arm.options["passes"] for arm in table.arms[::3]] == [3, 6, 13, 26, 51, 102]
    five = scaled(TABLES["ablation_points"], 5).student
    assert five == Training(epochs=5, lr_decay_epochs=(3, 4))  # after 3.125, 3.75 and 4.375
    assert scaled(TABLES["ablation_points"], 1).student == Training(epochs=1, lr_decay_epochs=())
    small = scaled(TABLES["cifar100_small"], 4)
    assert small.teacher == Training(epochs=12, lr_decay_epochs=(8, 9, 11), amp="bf16")
    assert small.student == Training(epochs=4, lr_decay_epochs=(3,), amp="bf16")
    assert small.making.passes == 8
    assert scaled(TABLES["digits"], 12) is TABLES["digits"]


def test_clouds_of_an_adopted_teacher_are_those_of_every_schedule(dry_run):
    """They have one folder, so that a shorter trial would leave fewer to the whole table."""
    options = ("--table", "imagenet_homogeneous", "--methods", "TopKD")
    whole, short = dry_run(*options), dry_run(*options, "--epochs", 10)
    assert short[:3] == whole[:3] and "--passes 10 --num_clouds 199936" in short[1]
    assert "--epochs 10 --lr_decay_epochs 3,6,9 " in short[3] and short[3].endswith("_e10_trial1")


def test_what_a_method_counts_in_epochs_shrinks_with_the_table(dry_run):
    """CTKD's ramp of 10 of 240 epochs, DKD's warm-up of 20, FT's first stage of 30."""
    options = ("--row", "resnet56:resnet20", "--methods", "CTKD,DKD,FT", "--trials", 1)
    for epochs, expected in ((48, ("ramp=2", "4", "6")), (8, ("ramp=1", "1", "1")), (240, ("", "", ""))):
        _, *students, _ = dry_run("--table", "cifar100_homogeneous", *options, "--epochs", epochs)
        for line, option, value in zip(students, ("set", "warmup", "first_epochs"), expected, strict=True):
            assert (f" --{option} {value} " in line) == bool(value) and (f"--{option}" in line) == bool(value)
    options = ("--table", "imagenet_homogeneous", "--methods", "CTKD", "--trials", 1, "--epochs", 40)
    assert " --set ramp=2 " in dry_run(*options)[-2]  # on ImageNet 5 of 100


def test_all_arms_of_a_seed_come_before_the_next_seed():
    table = TABLES["cifar100_small"]
    order = [(arm.name, trial) for _, arm, trial in in_order(table.rows, table.arms, table)]
    control, top, exact, wasserstein = "KD-control", "TopKD", "TopKD-exact", "TopKD-wasserstein"
    expected = [(name, 1) for name in (control, top, exact, wasserstein, "CE", "CE+Top-exact")]
    expected += [(name, seed) for seed in (2, 3) for name in (control, top, exact, wasserstein)]
    expected += [(name, seed) for seed in (4, 5) for name in (control, top, exact)]
    expected += [(f"{name} delta {delta}", 1) for delta in (1, 5, 25, 125) for name in (exact, wasserstein)]
    assert order == expected
    two = in_order(["a:b", "c:d"], plain("KD", "TopKD"), table, 2)
    assert [(row, arm.name, trial) for row, arm, trial in two] == [
        (row, name, trial) for trial in (1, 2) for row in ("a:b", "c:d") for name in ("KD", "TopKD")
    ]


def test_arms_by_name_by_method_and_from_the_registry(monkeypatch):
    monkeypatch.setitem(distiller_dict, "mine", Method("MyLoss", "", nn.Identity, beta=2.0, source="published: here"))
    table = TABLES["ablation_dimension"]

    def found(*names, table=table):
        return [(arm.name, arm.method) for arm in find_arms(table, list(names))]

    assert found("topkd DIM 1") == [("TopKD dim 1", "TopKD")]
    assert found("TopKD") == [(f"TopKD dim {dim}", "TopKD") for dim in ("0", "1", "01")]
    assert found("KD", "TopKD dim 0", "KD") == [("KD", "KD"), ("TopKD dim 0", "TopKD")]
    small = TABLES["cifar100_small"]
    assert found("TopKD-exact", table=small) == [("TopKD-exact", "TopKD-exact")]  # not those of the sweep
    for name in ("mine", "MyLoss", "MYLOSS"):
        assert found(name) == [("MyLoss", "MyLoss")]
    assert found("mine+top-exact") == [("MyLoss+Top-exact", "MyLoss+Top-exact")]
    settings = student_settings(small, "resnet20:resnet8", small.arm("MyLoss+Top-exact"))
    loss = settings.loss
    assert (loss.distill, loss.beta, loss.delta, loss.topology) == ("mine", 2, 5, "exact")
    assert method_name(settings) == "MyLoss+Top-exact"
    assert stem(small, "resnet20:resnet8", "MyLoss") == "resnet20-resnet8_cifar100_MyLoss_small"


# The commands


def test_the_commands_of_one_row_are_those_of_readme(dry_run):
    options = ("--row", "ResNet56:resnet20", "--methods", "KD,kd-control,TopKD,TopKD-exact,CE+Top-exact", "--trials", 2)
    students = ["", " -r 1 -a 2 -d 0", " -d 5", " -d 5 --topology exact", " -a 0 -d 5 --topology exact"]
    expected = [STUDENT + student + " --trial 1" for student in students]
    expected[2:2] = [f"generate_PCD_PI.py --path_t {T56}", f"train_ripsnet.py --path_t {T56}"]
    expected += [STUDENT + student + " --trial 2" for student in students]
    assert dry_run("--table", "cifar100_homogeneous", *options) == [
        "train_teacher.py --model resnet56",
        *expected,
        "make_tables.py",
    ]


def test_the_commands_of_a_shortened_ablation(dry_run):
    teacher = "resnet56_cifar100_e24_trial1"
    path, epochs = f"--path_t save_t_models/{teacher}/best.pth", "--epochs 24 --lr_decay_epochs 15,18,21"
    lines = dry_run("--table", "ablation_dimension", "--methods", "TopKD dim 01", "--trials", 1, "--epochs", 24)
    assert lines == [
        f"train_teacher.py --model resnet56 {epochs} --name {teacher}",
        f"generate_PCD_PI.py {path} --passes 26",
        f"train_ripsnet.py {path}",
        f"generate_PCD_PI.py {path} --dim 1 --passes 26",
        f"train_ripsnet.py {path} --dim 1",
        f"train_student.py {path} --model_s resnet20 -d 5 --dim 01 {epochs} --trial 1 "
        "--name resnet56-resnet20_cifar100_TopKD_dim01_e24_trial1",
        "make_tables.py",
    ]


def test_several_processes_are_started_by_torchrun_where_a_stage_can_be_shared(dry_run):
    """Not the fit of a RipsNet, nor a method with a memory; and 32 images of a process are no cloud of 64."""
    options = ("--row", "resnet56:resnet20", "--methods", "KD,TopKD,CRD", "--trials", 1, "--nproc", 2)
    lines = dry_run("--table", "cifar100_homogeneous", *options)
    by = f"python -m torch.distributed.run --standalone --nproc_per_node 2 {os.path.relpath(ROOT)}/"
    assert lines == [
        f"{by}train_teacher.py --model resnet56",
        f"{by}{STUDENT} --trial 1",
        f"{by}generate_PCD_PI.py --path_t {T56}",
        f"train_ripsnet.py --path_t {T56}",
        f"{by}{STUDENT} -d 5 --gather_clouds --trial 1",
        f"{STUDENT} --distill crd --trial 1",
        "make_tables.py",
    ]
    with pytest.raises(UserError, match="--nproc: found 3, expected a divisor of the batch of 64 images"):
        dry_run("--table", "cifar100_homogeneous", "--nproc", 3)


def test_fewer_gpus_than_processes_of_a_run_are_refused(dry_run, monkeypatch):
    monkeypatch.setattr(reproduce, "visible_gpus", lambda *_: ["0", "1", "2"])
    with pytest.raises(UserError, match="--nproc: found 4 and 3 GPUs, expected a GPU for each process"):
        dry_run("--table", "digits", "--nproc", 4)
    assert dry_run("--table", "digits", "--nproc", 2)


def test_sum_pooling_reaches_stage_3_and_the_figure(dry_run):
    path = "--path_t save_t_models/vgg13_cifar100_trial1/best.pth"
    assert dry_run("--figure", "pi", "--row", "vgg13:mobilenetv2") == [
        "train_teacher.py --model vgg13",
        f"generate_PCD_PI.py {path}",
        f"train_ripsnet.py {path} --operator sum",
        f"visualize.py pi {path} --operator sum",
        "make_tables.py",
    ]
    assert dry_run("--figure", "pi") == dry_run("--figure", "pi", "--row", "vgg13:MobileNetV2")


def test_the_figure_of_embeddings_shows_teacher_and_three_students(dry_run):
    lines = dry_run("--figure", "umap")
    assert [line.split()[0] for line in lines] == [
        "train_teacher.py",
        "train_student.py",
        "train_student.py",
        "generate_PCD_PI.py",
        "train_ripsnet.py",
        "train_student.py",
        "visualize.py",
        "make_tables.py",
    ]
    words = lines[-2].split()
    students = [f"save_s_models/resnet56-resnet20_cifar100_{name}_trial1/best.pth" for name in ("CE", "KD", "TopKD")]
    assert words[1:4] == ["umap", "--path_t", T56]
    assert words[4:] == ["--path_s", *students, "--labels", "resnet56", "CE", "KD", "TopKD"]


def test_options_for_all_stages_replace_the_tables(dry_run):
    lines = dry_run("--table", "digits", "--trials", 1, "--amp", "off", "--device", "cpu", "--data_dir", "my data")
    for line in lines[:-1]:
        script, args = parsed(shlex.split(line))
        assert (args.data_dir, args.device.type, args.dataset) == ("my data", "cpu", "digits")
        assert script not in ("train_teacher", "train_student") or args.amp == "off"
    assert [parsed(shlex.split(line))[1].figure for line in lines[-3:-1]] == ["pi", "umap"]
    assert parsed(shlex.split(lines[-3]))[1].operator == "sum"
    assert not any("visualize" in line for line in dry_run("--table", "digits", "--methods", "KD"))


def test_several_tables_share_what_they_have_in_common(dry_run):
    lines = dry_run("--table", "ablation_dimension,ablation_image", "--trials", 1)
    assert len(lines) == len(set(lines))
    assert len([line for line in lines if line.startswith(STUDENT + " -d 5 --trial")]) == 1
    assert lines.count(f"generate_PCD_PI.py --path_t {T56} --resolution 10") == 1
    assert lines[-1] == "make_tables.py"


def test_the_estimate_counts_a_job_of_several_tables_once_in_all(dry_run):
    names = ("ablation_dimension", "ablation_image")
    commands = {name: set(dry_run("--table", name, "--trials", 1)) for name in names}
    one, other = commands.values()
    assert len(one | other) < len(one) + len(other) - 1  # they share more than the tables at the end
    expected = {name: len(lines) for name, lines in commands.items()}
    for asked, counts in ((names, expected | {"in all": len(one | other)}), (names[:1], {names[0]: len(one)})):
        lines = dry_run("--table", ",".join(asked), "--trials", 1, "--estimate")
        found = [re.match(r"(.+?) +(\d+) ", line) for line in lines[1 : lines.index("")]]
        assert {match[1]: int(match[2]) for match in found} == counts


@pytest.mark.parametrize("jobs, loads", [(1, 0), (2, 1)])
def test_before_several_jobs_at_once_each_data_set_is_downloaded_by_one_process(monkeypatch, jobs, loads):
    class NothingRuns:
        def __init__(self, *_):
            pass

        def run(self, planned):
            assert planned and sorted(loaded) == loads * [("cifar100", "sets", "cpu"), ("digits", "sets", "cpu")]

    loaded = []
    monkeypatch.setattr(reproduce, "load_data", lambda d: loaded.append((d.dataset, d.data_dir, d.device.type)))
    monkeypatch.setattr(reproduce, "Runner", NothingRuns)
    call("--table", "digits,ablation_loss,ablation_image", "--data_dir", "sets", "--jobs", jobs)
    assert len(loaded) == 2 * loads


def test_a_row_is_taken_of_the_tables_that_have_it(dry_run):
    options = ("--methods", "KD,TopKD", "--trials", 1)
    one = dry_run("--table", "cifar100_homogeneous", "--row", "vgg13:vgg8", *options)
    other = dry_run("--table", "cifar100_heterogeneous", "--row", "wrn_40_2:ShuffleV1", *options)
    both = dry_run("--table", "all", "--row", "vgg13:vgg8,WRN_40_2:shufflev1", *options)
    assert sorted(both) == sorted({*one, *other})


def test_all_tables_by_one_name_beside_others_too(dry_run, monkeypatch):
    monkeypatch.setattr(reproduce, "TABLES", {name: TABLES[name] for name in ("digits", "ablation_loss")})
    assert dry_run("--table", "all,digits") == dry_run("--table", "ALL") == dry_run("--table", "digits,ablation_loss")


def test_methods_that_a_pair_has_not_are_named(dry_run):
    options = ("--table", "cifar100_heterogeneous", "--row", "wrn_40_2:ShuffleV1", "--trials", 1)
    what = "not defined: FSP of wrn_40_2:ShuffleV1, MGD of wrn_40_2:ShuffleV1"
    what += " (train_student.py --list shows each method's pairs)"
    assert dry_run(*options, "--methods", "FSP,KD,MGD")[0] == f"# left out, {what}"
    with pytest.raises(UserError) as error:
        call(*options, "--methods", "FSP,MGD")
    assert str(error.value) == f"--methods: {what}"


@pytest.mark.parametrize(
    "options, line",
    [
        (
            ("--table", "cifar100_homogenous"),
            "--table: unknown 'cifar100_homogenous': did you mean 'cifar100_h",
        ),
        (("--table", "ImageNet"), "--table: unknown 'ImageNet': did you mean 'imagenet_"),
        (
            ("--table", "digits", "--row", "resnet20:resnet9"),
            "--row: unknown 'resnet20:resnet9': did you mean 'resnet2",
        ),
        (
            ("--table", "digits,ablation_loss", "--row", "vgg13:vgg8"),
            "--row: unknown 'vgg13:vgg8': did you mean 'resnet",
        ),
        (("--table", "digits", "--methods", "KD,TopKDD"), "--methods: unknown 'TopKDD': did you mean 'TopKD'"),
        (("--figure", "pi", "--methods", "KD"), "--methods: has no effect with --figure"),
    ],
)
def test_unknown_names_are_one_line_with_the_nearest(options, line):
    with pytest.raises(UserError) as error:
        call(*options)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


# What is finished, and what was cut off


def test_finished_runs_are_skipped_and_cut_off_ones_resumed(dry_run):
    options = ("--table", "cifar100_homogeneous", "--row", "resnet56:resnet20", "--methods", "TopKD", "--trials", 3)
    touch(Path("results/runs/resnet56_cifar100_trial1.csv"))
    touch(Path(T56))
    for name in ("clouds/00000.npy", "quality_dim0.json", "ripsnet_dim0_mean/last.pth"):
        touch(Path("ripsnet/resnet56_cifar100_trial1/layer-1_n64_eval_released", name))
    touch(Path("results/runs/resnet56-resnet20_cifar100_TopKD_trial2.csv"))
    touch(Path("save_s_models/resnet56-resnet20_cifar100_TopKD_trial3/last.pth"))
    assert dry_run(*options) == [
        "# resnet56_cifar100_trial1: finished",
        "# ripsnet/resnet56_cifar100_trial1/layer-1_n64_eval_released/spec_dim0.json: finished",
        f"train_ripsnet.py --path_t {T56} --resume",
        f"{STUDENT} -d 5 --trial 1",
        "# resnet56-resnet20_cifar100_TopKD_trial2: finished",
        f"{STUDENT} -d 5 --trial 3 --resume",
        "make_tables.py",
    ]


def test_clouds_that_were_cut_off_are_made_by_the_same_command(dry_run):
    touch(Path("ripsnet/resnet56_cifar100_trial1/layer-1_n64_eval_released/clouds/00000.npy"))
    lines = dry_run("--table", "ablation_loss", "--methods", "TopKD-exact", "--trials", 1)
    assert lines[1] == f"generate_PCD_PI.py --path_t {T56}"


@pytest.mark.parametrize("trace", [".lock", "last.new", "previous.pth", "last.pth"])
def test_a_teacher_from_elsewhere_is_used_and_not_trained_over(trace, dry_run):
    """One that has begun training here is no such: its first best.pth comes before its first last.pth."""
    touch(Path(T56))
    options = ("--table", "ablation_loss", "--methods", "CE", "--trials", 1)
    assert dry_run(*options)[0] == "# resnet56_cifar100_trial1: finished"
    touch(Path(T56).with_name(trace))
    assert dry_run(*options)[0] == "train_teacher.py --model resnet56 --resume"


def test_a_checkpoint_that_is_gone_though_its_run_has_a_row_is_missed_by_those_that_read_it(dry_run, monkeypatch):
    names = [f"resnet56-resnet20_cifar100_{name}_trial1" for name in ("CE", "KD", "TopKD")]
    students = [Path(f"save_s_models/{name}/best.pth") for name in names]
    for name in ("resnet56_cifar100_trial1", *names):
        touch(Path(f"results/runs/{name}.csv"))
    touch(students[1])
    expected = [
        f"{path}: missing, though results/runs/{path.parent.name}.csv says that its run has ended; some of these jobs "
        "need it: put it there, or remove that row and the run's folder, so that it is trained again"
        for path in (Path(T56), students[0], students[2])
    ]
    assert [line for line in dry_run("--figure", "umap") if "missing" in line] == [f"# {line}" for line in expected]
    monkeypatch.setattr(reproduce, "Runner", None)
    with pytest.raises(UserError) as error:
        call("--figure", "umap")
    assert str(error.value) == expected[0]
    options = ("--table", "ablation_loss", "--methods", "CE", "--trials", 1)  # of which nothing is left to do
    assert dry_run(*options)[0] == "# resnet56_cifar100_trial1: finished"
