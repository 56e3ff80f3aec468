"""Which classes and functions configurations may name, and the messages that refuse the others."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from project.config.allowed_targets import Target, granted, refusal, registered_modules
from project.config.instantiate import build
from project.errors import InputError

OWN = """
from foreign_parts import Elsewhere
from torch import nn

CONFIG_TARGETS: tuple[str, ...] = ("Listed", "Elsewhere")


class Listed(nn.Module): pass


class Unlisted(nn.Module): pass
"""
COMPUTED = """
from torch import nn

CONFIG_TARGETS = tuple(sorted(["Net"]))


class Net(nn.Module): pass
"""
FOREIGN = """
from torch import nn


class Elsewhere(nn.Module): pass


class Other(nn.Module): pass


def make_network(width: int = 2) -> nn.Module:
    return nn.Linear(width, width)


def helper() -> None: pass
"""
REGISTERED = """
from torch import nn

CONFIG_PACKAGES: dict[str, tuple[str, ...]] = {"model": ("foreign_parts.make_network",)}


class Net(nn.Module): pass


def make_own() -> nn.Module:
    return Net()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in (("own_parts_here", OWN), ("computed_parts", COMPUTED), ("foreign_parts", FOREIGN)):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    registered_modules.cache_clear()
    yield tmp_path
    registered_modules.cache_clear()
    for name in [name for name in sys.modules if name.startswith(("registered_", "foreign_parts"))]:
        del sys.modules[name]


def register(folder: Path, name: str, text: str = REGISTERED) -> None:
    """Write a package and the record of its installation."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(text)
    record = folder / f"{name}-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text(f"[project.config_targets]\n{name} = {name}\n")
    importlib.invalidate_caches()
    registered_modules.cache_clear()


def refused(name: str, group: str = "model") -> str:
    return refusal(Target(f"{group}._target_", name), group).removeprefix(f"{group}._target_={name}: ")


def test_a_module_allows_the_classes_that_it_lists_and_defines() -> None:
    assert refused("own_parts_here.Listed") == ""
    assert refused("own_parts_here.Unlisted").startswith("not allowed; model may name what is defined in ")
    told = "not allowed; own_parts_here only imports it: name foreign_parts.Elsewhere and list it in its own "
    assert refused("own_parts_here.Elsewhere") == f"{told}module"


def test_a_list_that_is_computed_is_reported() -> None:
    told = (
        "not allowed; computed_parts.CONFIG_TARGETS is not readable without running it; write a plain tuple"
    )
    assert refused("computed_parts.Net") == told


def test_a_list_of_another_name_is_reported(folder: Path) -> None:
    (folder / "misnamed_parts.py").write_text('HYDRA_TARGETS = ("Net",)\nclass Net: ...\n')
    told = "not allowed; misnamed_parts.HYDRA_TARGETS is not read; rename it to CONFIG_TARGETS"
    assert refused("misnamed_parts.Net") == told


def test_an_installed_package_allows_all_that_it_defines_in_every_group(folder: Path) -> None:
    register(folder, "registered_one")
    for group in ("model", "task", "data", "callbacks"):
        assert refused("registered_one.Net", group) == ""
        assert refused("registered_one.make_own", group) == ""
    assert refused("registered_one.nn", "model").startswith("not allowed")
    assert refused("registered_one.Nett") == "no Nett in registered_one; did you mean Net?"
    assert type(build({"model": {"_target_": "registered_one.make_own"}}, "model")).__name__ == "Net"


def test_a_folder_without_an_installed_record_allows_nothing(folder: Path) -> None:
    (folder / "merely_there").mkdir()
    (folder / "merely_there" / "__init__.py").write_text(REGISTERED)
    assert refused("merely_there.Net").startswith("not allowed")
    assert refused("foreign_parts.make_network").startswith("not allowed")


def test_a_registered_package_allows_names_of_other_packages_by_group(folder: Path) -> None:
    register(folder, "registered_two")
    assert refused("foreign_parts.make_network") == ""
    assert refused("foreign_parts.make_network", "data").startswith("not allowed")
    assert refused("foreign_parts.helper").startswith("not allowed")
    made = build({"model": {"_target_": "foreign_parts.make_network", "width": 3}}, "model")
    assert made.in_features == 3


def test_a_refusal_says_how_to_allow_the_name() -> None:
    line = refused("foreign_parts.Other")
    assert 'CONFIG_PACKAGES = {"model": ("foreign_parts.Other",)}' in line
    assert "CONFIG_TARGETS" in line
    assert "project.config_targets" in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("CONFIG_PACKAGES = dict(model=1)", "not readable without running it; write a plain dict"),
        ("CONFIG_PACKAGES = ('timm',)", "not a dict of tuples"),
        ("CONFIG_PACKAGES = {'modle': ('timm',)}", "no group modle; did you mean model?"),
    ],
)
def test_a_wrong_table_is_refused(folder: Path, text: str, message: str) -> None:
    name = f"registered_wrong_{abs(hash(text))}"
    register(folder, name, f"{text}\n")
    with pytest.raises(InputError, match=rf"^{name}\.CONFIG_PACKAGES: {message}"):
        granted("model")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere_at_all.Net", "no package nowhere_at_all is installed here; install it, your own with: pip"),
        ("torhc.nn.Linear", "no package torhc is installed here; did you mean torch?"),
        ("torch.nnn.Linear", "no nnn in torch; did you mean nn"),
        ("torch.nn.Linaer", "no Linaer in torch.nn; did you mean torch.nn.Linear"),
        ("own_parts_here.Lsited", "no Lsited in own_parts_here; did you mean Listed"),
        ("os.system", "not allowed; model may name what is defined in project.modules"),
        ("builtins.eval", "not allowed; "),
        ("torch.load", "not allowed; "),
        ("pickle.loads", "not allowed; "),
        ("subprocess.Popen", "not allowed; "),
    ],
)
def test_refusals_tell_missing_packages_missing_names_and_names_that_are_not_allowed(
    name: str, message: str
) -> None:
    assert refused(name).startswith(message)


def test_a_configuration_file_cannot_allow_anything() -> None:
    config = {"_target_": "foreign_parts.Other", "CONFIG_TARGETS": ["Other"], "CONFIG_PACKAGES": {}}
    with pytest.raises(InputError, match=r"^model\._target_=foreign_parts\.Other: not allowed; "):
        build({"model": config}, "model")
