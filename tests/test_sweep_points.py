"""What a sweep goes through: points, searches, and the configurations of jobs."""

from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from project.errors import InputError
from project.sweeps.composing import Composer
from project.sweeps.jobs import folder_name, in_grammar, short
from project.sweeps.points import Point, grid, jobs_of, listed, repeated
from project.sweeps.space import corners, overrides_of, space_of
from project.yaml_text import to_yaml

CONF = Path(__file__).resolve().parent.parent / "conf"


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
    file.write_text("optim.lr=0.1 # it's high\n  # it's a comment\n\"name='a#b'\"")
    assert [point.varied for point in listed(str(file), [], loader)] == [["optim.lr=0.1"], ["name='a#b'"]]  # type: ignore[arg-type]
    file.write_text("name=it's\n")
    with pytest.raises(InputError, match=r"line 1: No closing quotation"):
        listed(str(file), [], loader)  # type: ignore[arg-type]
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


def test_values_are_written_in_hydras_grammar() -> None:
    value = {"a": None, "b": True, "c": [1, 0.5, "it's"], "d": {"e": "x:y"}}
    written = in_grammar(value)
    assert written == r"{a:null,b:true,c:[1,0.5,'it\'s'],d:{e:'x:y'}}"
    assert OverridesParser.create().parse_override(f"+k={written}").value() == value


def test_numbers_are_shown_short() -> None:
    assert [short(text) for text in ("0.30000000000000004", "1e-05", "64", "0.00010010539")] == [
        *("0.3", "1e-05", "64", "0.0001001"),
    ]
