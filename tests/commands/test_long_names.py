"""Tests of names of more than 255 bytes: our own are shortened, those of users are refused in one line."""

import os
import sys
from pathlib import Path

import forked_attempts
import pytest
import torch
from conftest import Compose
from omegaconf import OmegaConf, read_write

from project.config.cli import report
from project.config.hydra_patches import set_override_dirname
from project.config.validation.values import find_problem
from project.datamodules.storage.image_cache import ImageCache
from project.errors import InputError
from project.runtime.atomic_files import atomic_replacement
from project.runtime.output_files import refuse_unwritable_output
from project.runtime.text import name_length, short_name

LONG = {"ascii": "a" * 300, "of three bytes": "図" * 90, "no text": "\udce9" * 256}
FITTING = {"ascii": "b" * 255, "of three bytes": "図" * 85, "no text": "\udce9" * 255}


@pytest.mark.parametrize("kind", LONG)
def test_names_are_shortened_by_bytes_and_remain_distinct(kind: str) -> None:
    name = LONG[kind]
    cut = short_name(name)
    assert 240 <= len(os.fsencode(cut)) <= 255 or kind == "no text"
    assert os.fsencode(cut).decode()  # no incomplete character
    assert short_name(name) == cut != short_name(f"{name}x")
    assert short_name(FITTING[kind]) == FITTING[kind]
    assert name_length(f"x/{FITTING[kind]}/y") == 255


@pytest.mark.parametrize("kind", FITTING)
def test_longest_allowed_file_name_is_written(tmp_path: Path, kind: str) -> None:
    file = tmp_path / FITTING[kind]
    refuse_unwritable_output("output=x", file)
    with atomic_replacement(file) as partial:
        partial.write_text("whole")
    assert file.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(InputError, match=r"output=x: cannot be written \(File name too long\)"):
        refuse_unwritable_output("output=x", tmp_path / f"{FITTING[kind]}a")
    assert list(tmp_path.iterdir()) == [file]


def test_images_of_a_long_folder_name_are_cached(tmp_path: Path) -> None:
    made = []

    def make() -> tuple[torch.Tensor, torch.Tensor]:
        made.append(1)
        return torch.full((2, 1, 3, 3), len(made), dtype=torch.uint8), torch.tensor([0, 1])

    for _ in range(2):
        for channels_last in (False, True):
            for split in ("train", "test"):
                name = f"{FITTING['of three bytes']}-{split}"
                images = ImageCache(tmp_path).load(name, {}, make, channels_last=channels_last)
                assert images.is_mapped
    assert len(made) == 4


def test_override_dirname_is_a_valid_folder_name(composer: Compose, tmp_path: Path) -> None:
    names = []
    for end in "xy":
        config = composer(f"+note={LONG['ascii']}{end}", f"+other='a/{LONG['of three bytes']}'")
        with read_write(config.hydra.job):
            set_override_dirname(config)
        name = config.hydra.job.override_dirname
        (tmp_path / name).mkdir(parents=True)
        names.append(name)
    assert names[0] != names[1]
    for overrides, expected in ((["seed=1", "optim=sgd"], "optim=sgd,seed=1"), ([], "")):
        config = composer(*overrides)
        with read_write(config.hydra.job):
            set_override_dirname(config)
        assert config.hydra.job.override_dirname == expected


@pytest.mark.parametrize("kind", ["ascii", "of three bytes"])
def test_name_too_long_for_a_folder_is_refused(kind: str) -> None:
    name, length = LONG[kind], len(LONG[kind].encode())
    assert find_problem("name", f"group/{name}", {}) == (
        f"name=group/{name}: too long for a folder (at most 255 bytes, got {length}); shorten it"
    )
    assert not find_problem("name", f"group/{FITTING[kind]}", {})


def test_long_paths_are_reported_in_one_line_with_their_key(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    word = f"resume={LONG['ascii']}"
    monkeypatch.setattr(sys, "argv", ["train.py", "seed=1", word])
    with pytest.raises(OSError, match="File name too long") as raised:
        os.stat(f"{LONG['ascii']}/sweep.json")  # noqa: PTH116
    assert report(raised.value) == 2
    assert capfd.readouterr().err == (
        f"error: {word}: the name is too long (at most 255 bytes, got 300); shorten it\n"
    )
    deep = "/".join(["d" * 200] * 30)
    with pytest.raises(OSError, match="File name too long") as raised:
        os.stat(deep)  # noqa: PTH116
    assert report(raised.value) == 2
    assert "the path is too long (6,029 bytes); shorten it" in capfd.readouterr().err


@pytest.mark.parametrize("word", ["name=", "resume=", "ckpt_path=", "paths.outputs=", "hydra.run.dir=x/"])
def test_commands_refuse_long_names_without_a_traceback(tmp_path: Path, word: str) -> None:
    printed = forked_attempts.run([f"{word}{LONG['ascii']}"], tmp_path, code=2)
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_data_folder_with_a_long_name_is_reported_as_missing(composed: Compose) -> None:
    with pytest.raises(
        Exception, match="no such folder; give a folder that contains a folder for each class"
    ):
        OmegaConf.to_container(composed("data=image_folder", f"data.path={LONG['ascii']}"), resolve=True)
