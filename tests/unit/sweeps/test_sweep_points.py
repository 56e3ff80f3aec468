"""Tests of sweep points, search spaces and job configurations."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict, read_write
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from project.errors import InputError
from project.runs.sweep_jobs import Job, folder_name, shorten_number, to_override_value
from project.runtime.bounds import Range, check_arguments
from project.runtime.yaml_files import to_yaml
from project.sweeps.compose import Composer
from project.sweeps.sweepers.grid import (
    GridSweeper,
    Point,
    PointLimit,
    count_values,
    drop_duplicates,
    grid,
    make_jobs,
    read_points,
    recorded_points,
    repetitions,
    replace_values,
)
from project.sweeps.sweepers.search_space import find_corners, parse_space, trial_overrides

CONF = Path(__file__).resolve().parents[3] / "conf"


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
    ours.compose(["optim.lr=5", *overrides[:1]])  # an earlier job has no effect
    expected = loader.load_sweep_config(config, list(overrides))  # type: ignore[attr-defined]
    assert ours.compose(overrides) == expected
    assert OmegaConf.to_yaml(ours.compose(overrides)) == OmegaConf.to_yaml(expected)


def test_to_yaml_equals_omegaconf(composer: object) -> None:
    config = composer("experiment=mnist_best")  # type: ignore[operator]
    assert OmegaConf.create(to_yaml(config)) == config
    with read_write(config.hydra), open_dict(config.hydra):
        del config.hydra["help"]  # PyYAML and libyaml fold a text with indented lines at different words
    assert to_yaml(config) == OmegaConf.to_yaml(config)
    odd = OmegaConf.create({"a": "1e5", "b": "on", "n": [None, "x: y", "é", "0x1", "", "null", 1e-5]})
    assert to_yaml(odd) == OmegaConf.to_yaml(odd)


def test_sweep_preset_defines_a_search_space(composer: object) -> None:
    config = composer("sweep=learning_rate", "model=mlp")  # type: ignore[operator]
    assert config.hydra.sweeper._target_.endswith("OptunaSweeper")
    loader, _ = master()
    params = [f"{key}={value}" for key, value in config.hydra.sweeper.params.items()]
    constant, space = parse_space(["model=mlp", *params], loader)  # type: ignore[arg-type]
    assert constant == ["model=mlp"]
    assert space["optim.lr"] == FloatDistribution(1e-4, 1e-1, log=True)
    assert space["data.batch_size"] == CategoricalDistribution(["32", "64", "128"])


def lines_of(points: list[Point]) -> list[list[str]]:
    return [[*point.constant, *point.varied] for point in points]


@pytest.mark.parametrize(
    "written",
    [
        b"model=mlp\noptim.lr=0.1 'name=\"a #b\"'",
        b"model=mlp\r\n\r\n# it's a comment\r\noptim.lr=0.1 'name=\"a #b\"' # don't\r\n",
        "\ufeffmodel=mlp\n  \noptim.lr=0.1 'name=\"a #b\"'\n".encode(),
        "model=mlp\r\noptim.lr=0.1 'name=\"a #b\"'\r\n".encode("utf-16"),
        b"model=mlp\roptim.lr=0.1 'name=\"a #b\"'\r",
    ],
)
def test_points_file_is_read_in_all_common_encodings(
    composer: object, tmp_path: Path, written: bytes
) -> None:
    loader, _ = master()
    (tmp_path / "points.txt").write_bytes(written)
    points = read_points(str(tmp_path / "points.txt"), [], loader)  # type: ignore[arg-type]
    assert lines_of(points) == [["model=mlp"], ["optim.lr=0.1", 'name="a #b"']]


def test_points_file_in_another_encoding_is_refused(composer: object, tmp_path: Path) -> None:
    loader, _ = master()
    (tmp_path / "points.txt").write_bytes("name=größe".encode("latin-1"))
    with pytest.raises(InputError, match=r"hydra\.sweeper\.file=.*: not UTF-8 text"):
        read_points(str(tmp_path / "points.txt"), [], loader)  # type: ignore[arg-type]


def test_duplicate_points_are_dropped() -> None:
    points = [Point(["a=1"], ["b=1"]), Point(["a=1"], ["b=2"]), Point([], ["b=1", "a=1"])]
    assert lines_of(drop_duplicates(points)) == [["a=1", "b=1"], ["a=1", "b=2"]]


@pytest.mark.parametrize(
    "text",
    [
        "seed=range(1,9)",
        "seed=range(9,1,-3)",
        "a=range(0,1,0.1)",
        "a=range(1,0,-0.3)",
        "a=range(5)",
        "a=range(2,2)",
        "model=mlp,cnn",
        "model=glob(m*)",
        "seed=shuffle(1,2,3)",
        "a=sort(range(1,5))",
        "a=range(0,2.1,0.7)",
    ],
)
def test_value_counts_equal_hydras(composer: object, text: str) -> None:
    loader, _ = master()
    (override,) = OverridesParser.create(config_loader=loader).parse_overrides([text])  # type: ignore[arg-type]
    assert count_values(override) == len(list(override.sweep_iterator()))


def test_too_many_points_are_refused(composer: object, tmp_path: Path) -> None:
    loader, _ = master()
    words = ["seed=range(0,4)", "optim.lr=0.1,0.2"]
    assert len(grid(words, loader, PointLimit(16, 2))) == 8  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match=r"lr=0.1,0.2: 8 points, each 2 times \(seeds, folds\); sweep at most 15"
    ):
        grid(words, loader, PointLimit(15, 2))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"seed=range\(0,1e15\): 1,000,000,000,000,000 points"):
        grid(["seed=range(0,1e15)"], loader)  # type: ignore[arg-type]
    (tmp_path / "points.txt").write_text("model=mlp\nmodel=cnn,vit\n")
    assert len(read_points(str(tmp_path / "points.txt"), words, loader, PointLimit(24))) == 24  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"hydra\.sweeper\.file=.*: 24 points"):
        read_points(str(tmp_path / "points.txt"), words, loader, PointLimit(23))  # type: ignore[arg-type]


class Options:
    def __init__(
        self,
        jobs: Annotated[int, Range(1)] | None = None,
        share: Annotated[float, Range(above=0)] | Literal["auto"] = "auto",
        account: str | None = None,
        gpus: Sequence[int] | Literal["auto"] = "auto",
        fast: bool = False,
        seeds: Annotated[int, Range(1)] = 1,
        extra: Mapping[str, Annotated[float, Range(0)]] | None = None,
    ) -> None: ...


def test_plugin_options_are_checked_against_annotations() -> None:
    fitting = {"jobs": 3, "share": 0.5, "gpus": [0, 1], "fast": True, "extra": {"a": 0}}
    assert check_arguments("hydra.launcher", Options, fitting) == fitting
    assert check_arguments("hydra.launcher", Options, {"account": 123}) == {"account": "123"}
    for options, message in (
        ({"jobs": 0}, "hydra.launcher.jobs=0: must be at least 1"),
        ({"jobs": 1.0}, "hydra.launcher.jobs=1.0: expected a whole number, got 1.0"),
        ({"jobs": True}, "hydra.launcher.jobs=True: expected a whole number, got true"),
        ({"share": 0}, "hydra.launcher.share=0: must be above 0"),
        ({"share": float("inf")}, "hydra.launcher.share=inf: expected a finite number, got inf"),
        ({"share": "all"}, "hydra.launcher.share=all: expected a number or auto, got 'all'"),
        ({"account": [1]}, "hydra.launcher.account=[1]: expected a string, got [1]"),
        ({"gpus": "0"}, "hydra.launcher.gpus=0: expected a list or auto, got '0'"),
        ({"gpus": ["a"]}, "hydra.launcher.gpus=['a']: expected a whole number, got 'a'"),
        ({"fast": 1}, "hydra.launcher.fast=1: expected true or false, got 1"),
        ({"seeds": 0}, "seeds=0: must be at least 1"),
        ({"extra": {"a": -1}}, "hydra.launcher.extra={'a': -1}: must be at least 0"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            check_arguments("hydra.launcher", Options, options)  # type: ignore[arg-type]


def test_search_space_is_parsed_from_hydras_grammar(composer: object) -> None:
    loader, _ = master()
    words = [
        "model=mlp,cnn",
        "a=int(interval(1,9))",
        "b=range(1,10,3)",
        "c=interval(0,1)",
        "d=range(0,1,0.5)",
    ]
    _, space = parse_space(words, loader)  # type: ignore[arg-type]
    assert space == {
        "model": CategoricalDistribution(["mlp", "cnn"]),
        "a": IntDistribution(1, 9),
        "b": IntDistribution(1, 7, step=3),
        "c": FloatDistribution(0, 1),
        "d": FloatDistribution(0, 0.5, step=0.5),
    }
    ends = find_corners(space)
    assert len(ends) == 2
    assert trial_overrides(ends[1]) == ["model=cnn", "a=9", "b=7", "c=1.0", "d=0.5"]
    with pytest.raises(InputError, match="nothing to search"):
        parse_space(["model=mlp"], loader)  # type: ignore[arg-type]


def test_grid_contains_all_combinations(composer: object) -> None:
    loader, _ = master()
    points = grid(["model=mlp,cnn", "data=mnist", "seed=range(3)", "optim=glob(ada*)"], loader)  # type: ignore[arg-type]
    assert len(points) == 2 * 3 * 2
    assert points[0].constant == ["data=mnist"]
    assert points[-1].varied == ["model=cnn", "seed=2", "optim=adamw"]
    with pytest.raises(InputError, match=r"optim\.lr=interval\(0,1\): a grid needs single values"):
        grid(["optim.lr=interval(0,1)"], loader)  # type: ignore[arg-type]


def test_points_file_is_combined_with_the_command_line(composer: object, tmp_path: Path) -> None:
    loader, _ = master()
    file = tmp_path / "points.txt"
    file.write_text("# a comment\nmodel=mlp optim.lr=0.1\n\nmodel=cnn 'name=a b' optim=sgd,adam\n")
    points = read_points(str(file), ["seed=1,2", "data=mnist"], loader)  # type: ignore[arg-type]
    assert len(points) == 2 * (1 + 2)
    assert points[0].varied == ["seed=1", "model=mlp", "optim.lr=0.1"]
    file.write_text("optim.lr=0.1 # it's high\n  # it's a comment\n\"name='a#b'\"")
    assert [point.varied for point in read_points(str(file), [], loader)] == [
        ["optim.lr=0.1"],
        ["name='a#b'"],
    ]  # type: ignore[arg-type]
    file.write_text("name=it's\n")
    with pytest.raises(InputError, match=r"line 1: No closing quotation"):
        read_points(str(file), [], loader)  # type: ignore[arg-type]
    file.write_text("model=mlp\nno override\n")
    with pytest.raises(InputError, match=r"hydra\.sweeper\.file=.*: line 2: "):
        read_points(str(file), [], loader)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"hydra\.sweeper\.file=nowhere: No such file"):
        read_points("nowhere", [], loader)  # type: ignore[arg-type]


def test_points_of_a_file_replace_values_of_the_command_line(composer: object, tmp_path: Path) -> None:
    loader, _ = master()
    (file := tmp_path / "points.txt").write_text("optim.lr=0.5 +loss.x=1\nmodel=cnn\n")
    points = read_points(str(file), ["optim.lr=0.1,0.2", "+loss.x=0"], loader)  # type: ignore[arg-type]
    assert [point.varied for point in drop_duplicates(points)] == [
        *(["optim.lr=0.5", "+loss.x=1"], ["optim.lr=0.1", "model=cnn"], ["optim.lr=0.2", "model=cnn"]),
    ]
    assert replace_values(Point(["+a.x=1", "b=2"], ["c=3"]), ["a.x=5", "c=4"]) == Point(
        ["b=2"], ["c=4", "+a.x=5"]
    )


@pytest.mark.parametrize(("seeds", "folds"), [(1, None), (3, None), (1, 2), (2, 3)])
def test_points_are_read_from_recorded_jobs(seeds: int, folds: int | None) -> None:
    points = [Point(["data=mnist"], [f"optim.lr={lr}", "+loss.x=1"]) for lr in (0.1, 0.2)]
    jobs: list[Job] = []
    for number, point in enumerate(points):
        jobs += make_jobs(len(jobs), number, point, list(repetitions(point, 1, seeds, folds)), 1)
    assert recorded_points(jobs, folds) == dict(enumerate(points))


def test_seeds_and_folds_repeat_each_point() -> None:
    point = Point(["data=mnist", "seed=5"], ["model=mlp"])
    extras = list(repetitions(point, 5, seeds=2, folds=2))
    assert extras[1] == ["seed=5", "data.folds=2", "data.fold=1"]
    jobs = make_jobs(8, 3, point, extras, digits=2)
    assert [one.name for one in jobs][:3] == [
        "08_mlp_seed5_fold0",
        "09_mlp_seed5_fold1",
        "10_mlp_seed6_fold0",
    ]
    assert jobs[2].overrides == ["data=mnist", "model=mlp", "seed=6", "data.folds=2", "data.fold=0"]
    assert {one.point for one in jobs} == {3}
    with pytest.raises(InputError, match="seeds=2: seed is swept already"):
        list(repetitions(Point([], ["seed=1"]), 1, seeds=2, folds=None))


@pytest.mark.parametrize(
    ("varied", "name"),
    [
        (["model=cnn", "optim.lr=0.1", "optim.betas=[0.9,0.99]"], "7_cnn_lr0.1_0.9-0.99"),
        (["optim.lr=0.012345678", "compile=true"], "7_lr0.01235_compiletrue"),
        (["data.path=/a/b=c d", "+callbacks.pruning={x:1}"], "7_a-b-c-d"),
        ([], "7"),
    ],
)
def test_folder_names_need_no_quotes(varied: list[str], name: str) -> None:
    assert folder_name(7, varied) == name


def test_values_are_written_in_hydras_grammar() -> None:
    value = {"a": None, "b": True, "c": [1, 0.5, "it's"], "d": {"e": "x:y"}}
    written = to_override_value(value)
    assert written == r"{a:null,b:true,c:[1,0.5,'it\'s'],d:{e:'x:y'}}"
    assert OverridesParser.create().parse_override(f"+k={written}").value() == value


def test_numbers_are_shortened() -> None:
    assert [shorten_number(text) for text in ("0.30000000000000004", "1e-05", "64", "0.00010010539")] == [
        *("0.3", "1e-05", "64", "0.0001001"),
    ]


def test_an_extension_follows_the_conditions_of_the_sweep(composer: object) -> None:
    sweeper = GridSweeper(only_if={"optim.momentum": "optim=sgd"})
    sweeper.loader, _ = master("optim=sgd,adam", "hydra.verbose=true")  # type: ignore[assignment]
    adam, sgd = ["optim=adam"], ["optim=sgd", "optim.momentum=0.9"]
    for recorded in ([adam, sgd], [adam]):  # without the key in some or all points
        sweeper.extension = ["optim.momentum=0,0.9"]
        points = sweeper._added_points([Point([], varied) for varied in recorded])
        assert [point.varied for point in points] == [["optim=sgd", "optim.momentum=0"]][: len(recorded) - 1]
    sweeper.extension = ["optim.lr=0.1"]
    points = sweeper._added_points([Point([], adam), Point([], sgd)])
    assert [point.varied for point in points] == [[*adam, "optim.lr=0.1"], [*sgd, "optim.lr=0.1"]]
