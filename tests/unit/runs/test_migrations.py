"""Keys and classes of earlier versions get today's names."""

from importlib import import_module
from typing import Any

import pytest
import yaml
from conftest import ROOT

from project.runs import migrations
from project.runs.migrations import RENAMED_CLASSES, RENAMED_KEYS, migrate, new_name, old_keys

OLD_RUN = ROOT / "tests" / "data" / "run_of_0_1"


def targets(node: Any) -> list[str]:
    if isinstance(node, list):
        return [name for child in node for name in targets(child)]
    if not isinstance(node, dict):
        return []
    own = [node["_target_"]] if "_target_" in node else []
    return [*own, *(name for child in node.values() for name in targets(child))]


def test_an_old_run_gets_todays_names() -> None:
    old = yaml.safe_load((OLD_RUN / "config.yaml").read_text().replace("@RUN@", "run"))
    assert "find" in set(old_keys(old))
    new = migrate(old)
    assert list(old_keys(new)) == []
    assert (new["tune"], new["retry_failed"], "find" in new) == (None, False, False)
    for target in targets(new):
        module, _, name = target.rpartition(".")
        assert hasattr(import_module(module), name), target
    assert migrate(new) == new


@pytest.mark.parametrize("target", sorted(set(RENAMED_CLASSES.values())))
def test_renamed_classes_are_there(target: str) -> None:
    module, _, name = target.rpartition(".")
    assert hasattr(import_module(module), name)


def test_no_new_name_is_an_old_one() -> None:
    assert not set(RENAMED_KEYS) & set(RENAMED_KEYS.values())
    assert not set(RENAMED_CLASSES) & set(RENAMED_CLASSES.values())


def test_keys_move_with_what_refers_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"a": {"old": 1, "other": 2}, "top": "${a.old}/${a.other}"}
    monkeypatch.setattr(migrations, "RENAMED_KEYS", {"a.old": "a.new", "top": "a.moved"})
    assert migrate(config) == {"a": {"other": 2, "new": 1, "moved": "${a.new}/${a.other}"}}
    monkeypatch.setattr(migrations, "RENAMED_KEYS", {"c.s": "c.v", "c.s.images": "c.v.max_images"})
    assert migrate({"c": {"s": {"images": 3, "n": 4}}}) == {"c": {"v": {"max_images": 3, "n": 4}}}
    assert new_name("c.s.n") == "c.v.n"
    assert new_name("c.t") == ""


def test_another_packages_arguments_keep_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "RENAMED_KEYS", {"model.hidden": "model.hidden_dim"})
    mine = {"model": {"_target_": "mine.Net", "hidden": 3}}
    assert migrate(mine) == mine
    ours = {"model": {"_target_": "project.modules.networks.cnn.CNN", "hidden": 3}}
    assert "hidden_dim" in migrate(ours)["model"]
