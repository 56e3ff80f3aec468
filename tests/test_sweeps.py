"""What a sweep is made of, without processes: points, configurations, devices, the record, the tables."""

import json
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from project import resume
from project.errors import InputError
from project.sweeps.composing import Composer
from project.sweeps.dispatch import is_whole, judge, settle
from project.sweeps.fingerprint import differences, fingerprint
from project.sweeps.folder import SweepFolder, create
from project.sweeps.jobs import Job, folder_name, short
from project.sweeps.ledger import Ledger
from project.sweeps.points import Point, grid, jobs_of, listed, repeated
from project.sweeps.slots import Need, Slots, need_of
from project.sweeps.space import corners, overrides_of, space_of
from project.sweeps.table import jobs_table, points_table, spread, write_csv
from project.yaml_text import to_yaml

CONF = Path(__file__).resolve().parent.parent / "conf"


def job(number: int, state: str = "waiting", **facts: object) -> Job:
    varied = [f"optim.lr={10.0**-number:g}"]
    return Job(number, ["model=mlp", *varied], varied, folder_name(number, varied), state=state, **facts)  # type: ignore[arg-type]


def master(*overrides: str) -> tuple[object, object]:
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    return hydra.config_loader, hydra.compose_config("train", list(overrides), RunMode.MULTIRUN)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=vit", "optim.lr=0.1", "trainer.max_epochs=1", "data=mnist"],
        ["experiment=mnist_mlp", "~callbacks.early_stopping", "+model.extra={a:1,b:[x,y]}", "seed=3"],
        ["optim.lr=1e-3", "optim=sgd", "hydra.sweep.subdir=x", "++data.batch_size=7", "name='a b'"],
        ["+callbacks.pruning={_target_:a.b,storage:'sqlite:///x y',trial:3,monitor:${monitor}}"],
    ],
)
def test_jobs_are_composed_as_hydra_composes_them(composer: object, overrides: list[str]) -> None:
    loader, config = master("model=mlp,cnn", "hydra.verbose=true")
    ours = Composer(loader, config)  # type: ignore[arg-type]
    ours.compose(["optim.lr=5", *overrides[:1]])  # an earlier job leaves no trace
    expected = loader.load_sweep_config(config, list(overrides))  # type: ignore[attr-defined]
    assert ours.compose(overrides) == expected
    assert OmegaConf.to_yaml(ours.compose(overrides)) == OmegaConf.to_yaml(expected)


def test_text_is_what_omegaconf_writes(composer: object) -> None:
    config = composer("experiment=mnist_best")  # type: ignore[operator]
    assert to_yaml(config) == OmegaConf.to_yaml(config)
    odd = OmegaConf.create({"a": "1e5", "b": "on", "n": [None, "x: y", "é", "0x1", "", "null", 1e-5]})
    assert to_yaml(odd) == OmegaConf.to_yaml(odd)


def test_a_preset_is_a_search_with_a_space_of_its_own(composer: object) -> None:
    config = composer("sweep=learning_rate", "model=mlp")  # type: ignore[operator]
    assert config.hydra.mode == RunMode.MULTIRUN
    assert config.hydra.sweeper._target_.endswith("OptunaSweeper")
    loader, _ = master()
    params = [f"{key}={value}" for key, value in config.hydra.sweeper.params.items()]
    constant, space = space_of(["model=mlp", *params], loader)  # type: ignore[arg-type]
    assert constant == ["model=mlp"]
    assert space["optim.lr"] == FloatDistribution(1e-4, 1e-1, log=True)
    assert space["data.batch_size"] == CategoricalDistribution(["32", "64", "128"])


def test_a_space_is_written_in_hydras_grammar(composer: object) -> None:
    loader, _ = master()
    words = [
        "model=mlp,cnn",
        "a=int(interval(1,9))",
        "b=range(1,10,3)",
        "c=interval(0,1)",
        "d=range(0,1,0.5)",
    ]
    _, space = space_of(words, loader)  # type: ignore[arg-type]
    assert space == {
        "model": CategoricalDistribution(["mlp", "cnn"]),
        "a": IntDistribution(1, 9),
        "b": IntDistribution(1, 7, step=3),
        "c": FloatDistribution(0, 1),
        "d": FloatDistribution(0, 0.5, step=0.5),
    }
    ends = corners(space)
    assert len(ends) == 2
    assert overrides_of(ends[1]) == ["model=cnn", "a=9", "b=7", "c=1.0", "d=0.5"]
    with pytest.raises(InputError, match="nothing to search"):
        space_of(["model=mlp"], loader)  # type: ignore[arg-type]


def test_a_grid_is_every_combination(composer: object) -> None:
    loader, _ = master()
    points = grid(["model=mlp,cnn", "data=mnist", "seed=range(3)", "optim=glob(ada*)"], loader)  # type: ignore[arg-type]
    assert len(points) == 2 * 3 * 2
    assert points[0].constant == ["data=mnist"]
    assert points[-1].varied == ["model=cnn", "seed=2", "optim=adamw"]
    with pytest.raises(InputError, match=r"optim\.lr=interval\(0,1\): a grid needs single values"):
        grid(["optim.lr=interval(0,1)"], loader)  # type: ignore[arg-type]


def test_points_from_a_file_are_taken_with_each_of_the_command_line(composer: object, tmp_path: Path) -> None:
    loader, _ = master()
    file = tmp_path / "points.txt"
    file.write_text("# a comment\nmodel=mlp optim.lr=0.1\n\nmodel=cnn 'name=a b' optim=sgd,adam\n")
    points = listed(str(file), ["seed=1,2", "data=mnist"], loader)  # type: ignore[arg-type]
    assert len(points) == 2 * (1 + 2)
    assert points[0].varied == ["seed=1", "model=mlp", "optim.lr=0.1"]
    file.write_text("model=mlp\nno override\n")
    with pytest.raises(InputError, match=r"hydra\.sweeper\.file=.*: line 2: "):
        listed(str(file), [], loader)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"hydra\.sweeper\.file=nowhere: No such file"):
        listed("nowhere", [], loader)  # type: ignore[arg-type]


def test_seeds_and_folds_repeat_a_point() -> None:
    point = Point(["data=mnist", "seed=5"], ["model=mlp"])
    extras = list(repeated(point, 5, seeds=2, folds=2))
    assert extras[1] == ["seed=5", "data.folds=2", "data.fold=1"]
    jobs = jobs_of(8, 3, point, extras, digits=2)
    assert [one.name for one in jobs][:3] == [
        "08_mlp_seed5_fold0",
        "09_mlp_seed5_fold1",
        "10_mlp_seed6_fold0",
    ]
    assert jobs[2].overrides == ["data=mnist", "model=mlp", "seed=6", "data.folds=2", "data.fold=0"]
    assert {one.point for one in jobs} == {3}
    with pytest.raises(InputError, match="seeds=2: seed is swept already"):
        list(repeated(Point([], ["seed=1"]), 1, seeds=2, folds=None))


@pytest.mark.parametrize(
    ("varied", "name"),
    [
        (["model=cnn", "optim.lr=0.1", "optim.betas=[0.9,0.99]"], "7_cnn_lr0.1_0.9-0.99"),
        (["optim.lr=0.012345678", "compile=true"], "7_lr0.01235_compiletrue"),
        (["data.path=/a/b=c d", "+callbacks.pruning={x:1}"], "7_a-b-c-d"),
        ([], "7"),
    ],
)
def test_a_folders_name_needs_no_quotes(varied: list[str], name: str) -> None:
    assert folder_name(7, varied) == name


def test_numbers_are_shown_short() -> None:
    assert [short(text) for text in ("0.30000000000000004", "1e-05", "64", "0.00010010539")] == [
        *("0.3", "1e-05", "64", "0.0001001"),
    ]


def test_the_last_line_of_a_job_counts_and_a_torn_one_does_not(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "jobs.jsonl")
    assert ledger.read() == {}
    ledger.write(job(1), job(0))
    ledger.write(job(1, "done", value=0.5, metrics={"val/acc": 0.5}))
    with ledger.file.open("a") as stream:
        stream.write('{"number": 0, "state": "do')
    assert [one.state for one in ledger.read().values()] == ["waiting", "done"]
    ledger.write(job(0, "failed", error="no"))
    assert [one.state for one in ledger.read().values()] == ["failed", "done"]
    assert all(json.loads(line) for line in ledger.file.read_text().splitlines())


def test_slots_give_every_device_once() -> None:
    slots = Slots(cpus=16, gpus=("0", "1", "2", "3"), expected=10)
    two = slots.take(Need(2, 2))
    halves = [slots.take(Need(1, 0.5)) for _ in range(4)]
    assert two is not None
    assert slots.take(Need(1, 0.5)) is None
    used = [gpu for grant in halves for gpu in (grant.gpus if grant else ())]
    assert sorted(used) == sorted([*used[:2], *used[:2]])
    assert set(two.gpus).isdisjoint(used)
    assert slots.full
    slots.give_back(two)
    assert not slots.full
    again = slots.take(Need(2, 2))
    assert again is not None
    assert again.gpus == two.gpus


def test_threads_are_divided_fairly_on_cpus() -> None:
    slots = Slots(cpus=8, expected=100)
    grants = []
    while (grant := slots.take(Need(2))) is not None:
        grants.append(grant)
    assert len(grants) == 4
    assert {grant.threads for grant in grants} == {1}
    few = Slots(cpus=8, expected=2).take(Need(1))
    assert few is not None
    assert few.threads == 4
    capped = Slots(cpus=8, jobs=1, expected=50)
    one = capped.take(Need(2))
    assert one is not None
    assert one.threads == 4
    assert capped.take(Need(1)) is None
    large = Slots(cpus=2).take(Need(16))
    assert large is not None, "a job that is too large for the machine runs alone"


@pytest.mark.parametrize(
    ("trainer", "gpus", "share", "need"),
    [
        ({"accelerator": "cpu", "devices": 2}, 8, "auto", Need(2)),
        ({"accelerator": "auto", "devices": 1}, 0, "auto", Need(1)),
        ({"accelerator": "auto", "devices": "auto"}, 4, "auto", Need(4, 4)),
        ({"accelerator": "gpu", "devices": "2"}, 4, "auto", Need(2, 2)),
        ({"accelerator": "auto", "devices": 1}, 1, 0.25, Need(1, 0.25)),
        ({"accelerator": "auto", "devices": "auto"}, 8, 2, Need(2, 2)),
    ],
)
def test_a_job_takes_what_its_trainer_says(
    trainer: dict[str, object], gpus: int, share: float | str, need: Need
) -> None:
    assert need_of(trainer, gpus, share) == need


def test_devices_that_do_not_exist_or_contradict_are_refused() -> None:
    with pytest.raises(InputError, match=r"trainer\.devices=3: this machine has 2 GPUs"):
        need_of({"accelerator": "auto", "devices": 3}, 2, "auto")
    with pytest.raises(InputError, match=r"trainer\.accelerator=gpu: torch finds no GPU"):
        need_of({"accelerator": "gpu", "devices": 1}, 0, "auto")
    with pytest.raises(
        InputError, match=r"trainer\.devices=2, and from which with hydra\.launcher\.gpus=\[0, 3\]"
    ):
        need_of({"accelerator": "gpu", "devices": [0, 3]}, 4, "auto")
    with pytest.raises(InputError, match=r"gpus_per_job=2: .* set trainer=ddp trainer\.devices=2"):
        need_of({"accelerator": "auto", "devices": 1}, 2, 2)


def write_checkpoint(folder: SweepFolder, name: str, *, damaged: bool = False) -> None:
    import torch

    checkpoint = folder.run(name).last_checkpoint
    checkpoint.parent.mkdir(parents=True)
    torch.save({"a": torch.zeros(100)}, checkpoint)
    if damaged:
        checkpoint.write_bytes(checkpoint.read_bytes()[:-200])


def test_what_became_of_a_job_follows_from_its_folder(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    cases = {
        "done": ({"state": "done", "value": 0.5, "metrics": {"val/acc": 0.5}}, -9, "done", None),
        "lying": ({"state": "running"}, 0, "failed", "ended with exit code 0, without a result"),
        "killed": ({"state": "running"}, -9, "failed", "killed by SIGKILL, perhaps for lack of memory"),
        "raised": ({"state": "failed", "error": "ValueError: no"}, 1, "failed", "ValueError: no"),
        "stopped": ({"state": "interrupted"}, 130, "interrupted", None),
        "nothing": ({}, 1, "failed", "ended with exit code 1, without a result"),
    }
    for name, (status, exit_code, state, error) in cases.items():
        (tmp_path / name).mkdir()
        folder.run(name).write_status(**status)
        one = job(0, "running")
        judge(one, folder.run(name), exit_code)
        assert (one.state, one.error) == (state, error), name
    assert folder.run("done").read_status()["value"] == 0.5


def test_a_sweep_that_was_killed_is_settled_from_its_folders(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    jobs = [job(0, "running"), job(1, "running"), job(2, "failed"), job(3, "done"), job(4, "interrupted")]
    for one, state in zip(jobs, ("done", "running", "failed", "done", "interrupted"), strict=True):
        (tmp_path / one.name).mkdir()
        folder.run(one.name).write_status(state=state, value=0.25)
    settle(folder, jobs, retry=False)
    assert [one.state for one in jobs] == ["done", "waiting", "failed", "done", "waiting"]
    assert jobs[0].value == 0.25
    assert [one.state for one in folder.ledger.read().values()] == ["done", "waiting", "waiting"]
    settle(folder, jobs, retry=True)
    assert jobs[2].state == "waiting"


def test_only_a_whole_checkpoint_is_gone_on_from(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    write_checkpoint(folder, "whole")
    write_checkpoint(folder, "damaged", damaged=True)
    assert [is_whole(folder.run(name)) for name in ("whole", "damaged", "none")] == [True, False, False]


def test_comments_do_not_change_the_code_but_values_do(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    file = package / "a.py"
    file.write_text('"""Text."""\n\ndef f(x):\n    """More."""\n    return x + 1  # one\n')
    before = fingerprint(package)
    file.write_text('"""Other text."""\ndef f(x):\n    return (x\n        + 1)\n')
    assert differences(before, fingerprint(package)) == []
    file.write_text("def f(x):\n    return x + 2\n")
    (package / "b.py").write_text("")
    assert differences(before, fingerprint(package)) == ["a.py", "b.py"]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepFolder:
    monkeypatch.setattr(resume, "continued_sweep", None)
    outputs = tmp_path / "outputs"
    return create(str(outputs / "sweep" / "one"), CONF, ["model=mlp,cnn", "hydra.launcher.jobs=1"])


def test_a_sweep_goes_on_as_it_was_from_its_own_configuration_files(sweep: SweepFolder) -> None:
    outputs = f"paths.outputs={sweep.path.parent.parent}"
    defaults = CONF / "train.yaml"
    whole = ["-m", "--config-path", str(sweep.conf), "model=mlp,cnn", "hydra.launcher.jobs=1"]
    for arguments in (
        [f"resume={sweep.path}"],
        ["-m", "resume=last", outputs, "model=mlp,cnn"],
        ["resume=last", outputs],
    ):
        assert resume.set_aside(arguments, defaults) == whole
    changed = resume.set_aside([f"resume={sweep.path}", "hydra.launcher.jobs=4", "retry=true"], defaults)
    assert changed == [*whole[:-1], "hydra.launcher.jobs=4"]
    assert resume.continued_sweep is not None
    assert resume.continued_sweep.folder.path == sweep.path
    assert resume.continued_sweep.retry is True
    assert (sweep.conf / "model" / "cnn.yaml").read_text() == (CONF / "model" / "cnn.yaml").read_text()
    with pytest.raises(InputError, match=r"model=vit: .* was started with model=mlp,cnn"):
        resume.set_aside(["-m", f"resume={sweep.path}", "model=vit"], defaults)


def test_changed_code_is_refused_by_name(sweep: SweepFolder) -> None:
    sweep.refuse_changed_code()
    record = json.loads(sweep.record_file.read_text())
    record["code"]["modules/cnn.py"] = "other"
    sweep.record_file.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"the code changed since \(modules/cnn\.py\)"):
        sweep.refuse_changed_code()


def test_one_process_at_a_time_runs_a_sweep(sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("project.sweeps.folder.LAST_BREATH_S", 0.1)
    with sweep.locked(), pytest.raises(InputError, match="this sweep is running already"), sweep.locked():
        pass
    with sweep.locked():
        pass


def test_tables_show_every_job_and_the_spread_over_seeds(tmp_path: Path) -> None:
    jobs = [
        *(job(0, "done", point=0, value=value, metrics={"test/acc": value}) for value in (0.5, 0.7)),
        *(job(1, "done", point=1, value=value) for value in (0.8, 0.9)),
        job(2, "failed", point=2, error="no"),
    ]
    lines = jobs_table(jobs, "val/acc").splitlines()
    assert lines[0].split() == ["job", "lr", "state", "val/acc", "time"]
    assert lines[1].split() == ["0", "1", "done", "0.5000"]
    assert lines[5].split() == ["2", "0.01", "failed"]
    best, worse, failed = points_table(jobs, "val/acc", "max").splitlines()[1:]
    assert best.split() == ["0.1", "0.8500", "±", "0.0707", "2", "of", "2"]
    assert worse.split()[:2] == ["1", "0.6000"]
    assert failed.split() == ["0.01", "0", "of", "1"]
    assert points_table(jobs[:1], "val/acc", "max") == ""
    write_csv(tmp_path / "jobs.csv", jobs)
    rows = (tmp_path / "jobs.csv").read_text().splitlines()
    assert rows[0] == "job,folder,optim.lr,state,value,test/acc,duration_s,error"
    assert rows[1] == "0,0_lr1,1,done,0.5,0.5,,"


def test_spread_is_that_of_a_sample() -> None:
    assert spread([1.0, 2.0, None, float("nan"), 3.0]) == (2.0, 1.0, 3)
    assert spread([4.0]) == (4.0, 0.0, 1)
