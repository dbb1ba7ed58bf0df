"""reproduce.py: the list of experiments against the published settings and the scripts' own parsers, the commands and
their order, and running them: skipping, resuming, several at once, failures and signals."""

import importlib
import os
import shlex
import signal
import threading
import time
from pathlib import Path

import pytest
from torch import nn

import reproduce
from distiller_zoo import Method, distiller_dict
from helper import experiments, jobs, runs
from helper.experiments import FIGURES, SETTINGS, TABLES, Arm, Schedule, Table, find_arms, in_order, plain, scaled, stem
from helper.jobs import Job, Planner, Runner
from helper.options import Interrupted, RunStopped, UserError, dims, resolve_training
from helper.pairs import method_name, resolve_weights, run_name

ROOT = Path(__file__).resolve().parent.parent
T56 = "save_t_models/resnet56_cifar100_trial1/best.pth"
STUDENT = f"train_student.py --path_t {T56} --model_s resnet20"


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


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
    return Path(script).stem, importlib.import_module(Path(script).stem).get_args_parser().parse_args(options)


def planned(table, arms=None):
    planner = Planner({})
    planner.table(table, list(table.rows), list(arms or table.arms), 1)
    return planner.jobs


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


# The list of experiments


def test_settings_are_the_defaults_of_the_scripts():
    needed = {"train_teacher": [], "train_student": ["--model_s", "resnet8"]}
    for script, settings in SETTINGS.items():
        options = needed.get(script, []) + ["--path_t", "x"] * (script != "train_teacher")
        _, args = parsed([script, *options])
        found = {name: getattr(args, name) for name in settings}
        found = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
        assert found == {name: setting.value for name, setting in settings.items()}, script


def test_published_settings_are_the_published_ones():
    """Written out from the released code, and nothing else is called published but what is by pair or by rule."""
    sgd = {"epochs": 240, "lr_decay_epochs": (150, 180, 210), "lr_decay_rate": 0.1, "momentum": 0.9}
    sgd |= {"batch_size": 64, "weight_decay": 0.0005, "dataset": "cifar100"}
    images = {"tda_layer_t": -1, "dim": "0", "sigma_rule": "released", "resolution": 20, "range": "all"}
    images |= {"batch_size": 64, "dataset": "cifar100"}
    ripsnet = {"epochs": 25000, "patience": 50, "batch_clouds": 64, "lr": 0.0005, "ripsnet_clouds": None}
    expected = {
        "train_teacher": sgd,
        "generate_PCD_PI": images | {"passes": 256},
        "train_ripsnet": images | ripsnet,
        "train_student": sgd | images | {"kd_T": None, "tda_layer_s": -1, "lr": None, "ripsnet_clouds": None},
    }
    for script, settings in SETTINGS.items():
        published = {name: entry.value for name, entry in settings.items() if entry.source.startswith("published: ")}
        assert published == expected[script]
        assert {entry.source.split()[0] for entry in settings.values()} <= {"published:", "assumed:", "by"}


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
    text = "\n".join(lines)
    assert all(f"{name}: " in text for name in (*TABLES, *FIGURES)) and "None" not in text
    assert "TopKD-exact layer -3 (tda_layer_t -3, tda_layer_s -3)" in " ".join(text.split())


@pytest.mark.parametrize("name", TABLES)
def test_every_arm_is_marked_and_has_a_name_of_its_own(name):
    arms = TABLES[name].arms
    assert len({arm.name for arm in arms}) == len(arms)
    assert all(arm.source.startswith(("published: ", "assumed: ")) for arm in arms)
    assert TABLES[name].source.startswith(("published: ", "assumed: "))
    accepted = {option for script in list(SETTINGS)[1:] for option in SETTINGS[script]}
    assert all(arm.options.keys() <= accepted for arm in arms)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("epochs", [None, 3])
def test_every_experiment_is_understood_and_its_stages_agree(name, epochs):
    """The scripts' own parsers and naming read the commands; what stage 4 looks for is what stages 2 and 3 write."""
    table = scaled(TABLES[name], epochs or TABLES[name].student.epochs)
    for job in (found := planned(table)).values():
        script, args = parsed(job.command)
        if script == "train_teacher":
            assert job.folder == runs.TEACHERS / job.name
            assert (args.name or f"{args.model}_{args.dataset}_trial{args.trial}") == job.name
            continue
        teacher = Path(args.path_t).parent.name.split("_cifar100")[0].split("_digits")[0]
        folder = runs.clouds_folder(args)
        if script == "generate_PCD_PI":
            assert (job.folder, job.done) == (folder, runs.quality_file(folder, int(args.dim)))
        elif script == "train_ripsnet":
            assert job.folder == runs.ripsnet_folder(folder, int(args.dim), args.operator, args.ripsnet_clouds)
        else:
            resolve_training(args, args.model_s)
            resolve_weights(args, teacher, args.model_s)
            usual_name = run_name(args, teacher, args.model_s)
            assert job.name == (args.name or usual_name)
            assert job.name.startswith(usual_name.removesuffix("trial1"))
            needs = {found[need].folder for need in job.needs}
            assert Path(args.path_t).parent in needs
            expected = {folder} if args.topology == "exact" else set()
            if args.topology == "ripsnet":
                options = args.operator, args.ripsnet_clouds
                expected = {runs.ripsnet_folder(folder, dim, *options) for dim in dims(args)}
            assert needs - {Path(args.path_t).parent} == expected


@pytest.mark.parametrize("name", TABLES)
def test_every_arm_trains_the_method_it_names(name):
    table = TABLES[name]
    for arm in table.arms:
        for row in table.rows:
            args = experiments.student_args(table, row, arm)
            assert method_name(args, *row.split(":")) == arm.method
    stems = {(row, stem(table, row, arm.name)) for row in table.rows for arm in table.arms}
    equal = 2 if name == "cifar100_small" else 0  # delta 5 of the sweep is TopKD-exact and TopKD-wasserstein itself
    assert len(stems) == len(table.rows) * len(table.arms) - equal


def test_stems_are_the_names_without_their_trial():
    main, small = TABLES["cifar100_homogeneous"], TABLES["cifar100_small"]
    assert stem(main, "resnet56:resnet20", "TopKD-exact") == "resnet56-resnet20_cifar100_TopKD-exact"
    assert stem(scaled(main, 24), "vgg13:vgg8", "CE") == "vgg13-vgg8_cifar100_CE_e24"
    assert stem(small, "resnet20:resnet8", "TopKD-exact delta 25") == "resnet20-resnet8_cifar100_TopKD-exact_d25_small"
    assert stem(scaled(small, 240), "resnet20:resnet8", "CE") == "resnet20-resnet8_cifar100_CE_small_e240"
    assert stem(TABLES["digits"], "resnet20:resnet8", "TopKD") == "resnet20-resnet8_digits_TopKD_sum_e12"
    points = TABLES["ablation_points"]
    assert stem(points, "resnet56:resnet20", "KD-control n 8") == "resnet56-resnet20_cifar100_KD-control_n8"
    assert stem(points, "resnet56:resnet20", "TopKD n 64") == "resnet56-resnet20_cifar100_TopKD"
    assert experiments.teacher_name(small, "resnet20") == "resnet20_cifar100_small_trial1"


def test_scaled_schedules_by_hand():
    table = scaled(TABLES["ablation_clouds"], 24)
    assert table.teacher == table.student == Schedule(24, (15, 18, 21))
    assert table.options["generate_PCD_PI"]["passes"] == 26  # 25.6
    assert [arm.options.get("ripsnet_clouds") for arm in table.arms] == [100, 500, 2000, 7500, None]
    table = scaled(TABLES["ablation_points"], 24)
    assert [arm.options["passes"] for arm in table.arms[::3]] == [3, 6, 13, 26, 51, 102]
    assert scaled(TABLES["ablation_points"], 5).student == Schedule(5, (3, 4))  # after 3.125, 3.75 and 4.375
    assert scaled(TABLES["ablation_points"], 1).student == Schedule(1, ())
    small = scaled(TABLES["cifar100_small"], 4)
    assert (small.teacher, small.student) == (Schedule(12, (8, 9, 11)), Schedule(4, (3,)))
    assert small.options["generate_PCD_PI"]["passes"] == 8
    assert scaled(TABLES["digits"], 12) is TABLES["digits"]


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
    args = experiments.student_args(small, "resnet20:resnet8", small.arm("MyLoss+Top-exact"))
    assert (args.distill, args.beta, args.delta, args.topology) == ("mine", 2, 5, "exact")
    assert method_name(args, "resnet20", "resnet8") == "MyLoss+Top-exact"
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


def test_sum_pooling_reaches_stage_3_and_the_figure(dry_run):
    path = "--path_t save_t_models/vgg13_cifar100_trial1/best.pth"
    assert dry_run("--figure", "pi", "--row", "vgg13:mobilenetv2") == [
        "train_teacher.py --model vgg13",
        f"generate_PCD_PI.py {path}",
        f"train_ripsnet.py {path} --operator sum",
        f"visualize.py pi {path} --operator sum",
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
    ]
    words = lines[-1].split()
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


@pytest.mark.parametrize(
    "options, line",
    [
        (
            ("--table", "cifar100_homogenous"),
            "--table: unknown 'cifar100_homogenous': did you mean 'cifar100_h",
        ),
        (("--table", "ImageNet"), "--table: ImageNet is not implemented"),
        (
            ("--table", "digits", "--row", "resnet20:resnet9"),
            "--row: unknown 'resnet20:resnet9': did you mean 'resnet2",
        ),
        (("--table", "digits", "--methods", "KD,TopKDD"), "--methods: unknown 'TopKDD': did you mean 'TopKD'"),
        (("--figure", "pi", "--methods", "KD"), "--methods: of no use with --figure"),
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
    touch(Path("ripsnet/resnet56_cifar100_trial1/layer-1_n64_eval_released/quality_dim0.json"))
    touch(Path("ripsnet/resnet56_cifar100_trial1/layer-1_n64_eval_released/ripsnet_dim0_mean/last.pth"))
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


def test_a_teacher_from_elsewhere_is_used_and_not_trained_over(dry_run):
    touch(Path(T56))
    options = ("--table", "ablation_loss", "--methods", "CE", "--trials", 1)
    assert dry_run(*options)[0] == "# resnet56_cifar100_trial1: finished"
    touch(Path(T56).with_name("last.pth"))
    assert dry_run(*options)[0] == "train_teacher.py --model resnet56 --resume"


# Running


class FakeRunner(Runner):
    """Jobs that end at once, in the order in which they were started, and leave their last file."""

    def __init__(self, at_once, failing=()):
        super().__init__(at_once)
        self.started, self.together, self.failing = [], [], failing

    def start(self, job):
        self.started.append(shlex.join(job.call()))
        self.running[job.name] = job, None
        self.together.append({found.name for found, _ in self.running.values()})
        status = int(job.name in self.failing)
        if job.done and not status:
            touch(job.done)
        self.ended.put((job.name, status))


def chain(*names, folder=None):
    """Jobs of which each needs the one before."""
    return [
        Job(name, (f"{name}.py",), folder and Path(folder), Path(f"{name}.done"), needs=names[max(0, i - 1) : i])
        for i, name in enumerate(names)
    ]


def test_one_after_another_is_the_order_of_the_list():
    (runner := FakeRunner(1)).run(found := [*chain("a", "b"), *chain("c")])
    assert runner.started == ["a.py", "b.py", "c.py"] and all(job.finished for job in found)
    (again := FakeRunner(1)).run(found)
    assert again.started == []


def test_several_at_once_wait_for_what_they_need_and_for_the_folder():
    found = [*chain("a", "b"), *chain("c", folder="x"), *chain("d", folder="x"), *chain("e"), Job("last", ("l.py",))]
    (runner := FakeRunner(3)).run(found)
    assert runner.started == ["a.py", "c.py", "e.py", "b.py", "d.py", "l.py"]
    assert not any({"a", "b"} <= together or {"c", "d"} <= together for together in runner.together)
    assert max(map(len, runner.together)) == 3


def test_after_a_failure_nothing_starts_and_what_runs_may_end():
    runner = FakeRunner(2, failing=["a"])
    found = [*chain("a", "b"), *chain("c"), *chain("d")]
    with pytest.raises(RunStopped, match="a.py ended with exit code 1, 2 of 4 jobs were not started; .*same command"):
        runner.run(found)
    assert runner.started == ["a.py", "c.py"] and [job.name for job in found if job.finished] == ["c"]


def test_no_two_jobs_of_a_table_at_once_write_to_one_folder():
    """Both homology dimensions of stage 2 share clouds."""
    table = TABLES["ablation_dimension"]
    (runner := FakeRunner(16)).run(found := list(planned(table).values()))
    folders = {job.name: job.folder for job in found}
    for together in runner.together:
        assert len({folders[name] for name in together}) == len(together)
    assert len(runner.started) == len(found) and max(map(len, runner.together)) > 2


def script(name, text):
    path = Path(name).resolve()
    path.write_text(text)
    return str(path)


def test_lines_of_jobs_at_once_carry_their_names_and_the_cores_are_shared(capfd, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    path = script("say.py", "import os, sys\nprint(sys.argv[1], os.environ.get('OMP_NUM_THREADS'))\n")
    Runner(2).run([Job("one", (path, "A"), Path("a")), Job("two", (path, "B"), Path("b")), Job("tables", (path, "C"))])
    threads = max(1, os.cpu_count() // 2)
    lines = capfd.readouterr().out.splitlines()
    assert f"one: A {threads}" in lines and f"two: B {threads}" in lines and f"C {threads}" in lines
    Runner(1).run([Job("one", (path, "A"))])
    assert "A None" in capfd.readouterr().out.splitlines()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_signal_reaches_every_run_once_and_the_line_says_how_to_go_on(number, at_once):
    path = script(
        "train.py",
        "import os, pathlib, sys, time\n"
        "assert os.getsid(0) == os.getpid()  # out of reach of the terminal, which would be a second signal\n"
        "try:\n    pathlib.Path(sys.argv[1]).touch()\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    time.sleep(0.3)\n    pathlib.Path(sys.argv[1]).write_text('saved')\n"
        "    sys.exit(130)\n",
    )
    found = [Job(f"run{i}", (path, f"run{i}"), Path(f"folder{i}"), Path(f"done{i}")) for i in range(3)]

    def send():
        for i in range(at_once):
            while not Path(f"run{i}").exists():
                time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.signal(number, signal.default_int_handler)  # it may be ignored where the tests run
    try:
        threading.Thread(target=send).start()
        line = f"stopped with {3 - at_once} of 3 jobs not yet started; .*same command goes on"
        with pytest.raises(Interrupted, match=line):
            Runner(at_once).run(found)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert [Path(f"run{i}").exists() and Path(f"run{i}").read_text() for i in range(3)] == [
        "saved" if i < at_once else False for i in range(3)
    ]


TINY_TABLE = Table(
    "tiny",
    "assumed: a test",
    ("resnet8:resnet8",),
    (*plain("TopKD", "TopKD-exact"), Arm("KD n 8", "KD", "assumed: a test", {"batch_size": 8})),
    seeds=1,
    teacher=Schedule(1, ()),
    student=Schedule(2, (1,)),
    options={
        name: {"dataset": "tiny", "batch_size": 16}
        | {"train_ripsnet": {"epochs": 2, "batch_clouds": 4}, "generate_PCD_PI": {"passes": 2}}.get(name, {})
        for name in SETTINGS
    },
    tag="tiny",
)


@pytest.mark.slow
def test_a_table_that_is_interrupted_goes_on_where_it_stopped(tiny, monkeypatch, capfd):
    """Real runs, the first student of which is interrupted before its third batch."""
    monkeypatch.setitem(TABLES, "tiny", TINY_TABLE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    monkeypatch.setattr(jobs, "ROOT", Path("scripts").resolve())
    jobs.ROOT.mkdir()
    for path in ROOT.glob("*.py"):  # each runs the script of its name, up to the point that POINT names
        point = f"os.environ.get('POINT_{path.stem}', 'none')"
        text = f"import os, sys, killed\nkilled.main({point}, {str(path)!r}, *sys.argv[1:])\n"
        (jobs.ROOT / path.name).write_text(text)

    monkeypatch.setenv("POINT_train_student", "int:3")
    with pytest.raises(RunStopped, match="train_student.py .*ended with exit code 130"):
        call("--table", "tiny", "--jobs", 2)
    assert not list(Path("results/runs").glob("*-*.csv"))
    monkeypatch.delenv("POINT_train_student")
    capfd.readouterr()
    written = {path: path.stat().st_mtime_ns for path in Path("ripsnet").rglob("*.npy")}
    call("--table", "tiny", "--jobs", 2)
    printed = capfd.readouterr().out
    assert "train_teacher.py" not in printed and "--resume" in printed
    assert {path: path.stat().st_mtime_ns for path in written} == written
    names = [f"resnet8-resnet8_tiny_{name}_tiny_trial1" for name in ("KD_n8", "TopKD-exact_n16", "TopKD_n16")]
    assert sorted(path.stem for path in Path("results/runs").glob("*-*.csv")) == names
    for name in names:
        assert len(Path(f"results/logs/{name}.csv").read_text().splitlines()) == 1 + 2
    call("--table", "tiny")
    calls = [line for line in capfd.readouterr().out.splitlines() if line.startswith("python ")]
    assert len(calls) == 1 and calls[0].endswith("make_tables.py")


@pytest.mark.slow
def test_the_demonstration_in_a_shorter_form(capfd):
    """One epoch, one seed: every stage, the table and the figures, by one command."""
    call("--table", "digits", "--epochs", 1, "--trials", 1)
    printed = capfd.readouterr().out
    table = printed[printed.rindex("make_tables.py") :]
    assert all(name in table for name in ("CE", "KD", "KD-control", "TopKD", "TopKD-exact", "TopKD-wasserstein"))
    assert len(list(Path("results/runs").glob("resnet20-resnet8_digits_*_e1_trial1.csv"))) == 6
    figures = sorted(Path("results/figures").glob("*.png"))
    assert [figure.name.split("_")[0] for figure in figures] in (["pi", "tsne"], ["pi", "umap"])
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in figures)
