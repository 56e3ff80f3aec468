"""Tests of checkpoint files: atomic writes, checksums, the previous checkpoint and delayed writes."""

import errno
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_training import make_module

from project.errors import InputError, NonFiniteError
from project.modules.nan_guard import require_finite
from project.runs import checkpoint_files
from project.runs.checkpoint_files import CheckpointError, find_damage, newest
from project.training import checkpoint_io
from project.training.checkpoint_io import SafeCheckpointIO


def content(value: float = 0.0) -> checkpoint_files.Checkpoint:
    return {
        "state_dict": {"weight": torch.full((3, 4), value)},
        "optimizer_states": [{"state": {0: {"momentum": torch.zeros(3, 4)}}}],
        "loops": {"fit_loop": {}},
        "epoch": 0,
        "global_step": 7,
    }


def value_of(path: Path) -> float:
    return float(checkpoint_files.read(path)["state_dict"]["weight"][0, 0])


def write(path: Path, value: float) -> None:
    checkpoint_files.write(path, lambda stream: checkpoint_files.save(content(value), stream), 1000)


def test_previous_checkpoint_is_kept_and_checksums_match_sha256sum(tmp_path: Path) -> None:
    last = tmp_path / "checkpoints" / "last.ckpt"
    for value in (1.0, 2.0, 3.0):
        write(last, value)
    previous = last.with_name("previous.ckpt")
    assert [value_of(last), value_of(previous)] == [3.0, 2.0]
    names = ["last.ckpt", "last.ckpt.sha256", "previous.ckpt", "previous.ckpt.sha256"]
    assert sorted(file.name for file in last.parent.iterdir()) == names
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "-c", names[1]], cwd=last.parent, check=True, capture_output=True)
    assert newest(last.parent) == (last, [])


def test_previous_checkpoint_is_renamed_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(checkpoint_files.os, "link", refuse)
    last = tmp_path / "last.ckpt"
    for value in (1.0, 2.0):
        write(last, value)
    assert [value_of(last), value_of(tmp_path / "previous.ckpt")] == [2.0, 1.0]


def test_equal_checkpoints_share_their_space(tmp_path: Path) -> None:
    last, best = tmp_path / "last.ckpt", tmp_path / "best.ckpt"
    write(best, 1.0)
    write(last, 1.0)
    assert last.samefile(best)
    write(last, 2.0)
    assert [value_of(path) for path in (last, best, tmp_path / "previous.ckpt")] == [2.0, 1.0, 1.0]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == 3 * [".ckpt"] + 3 * [".sha256"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_failed_write_keeps_earlier_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    last = tmp_path / "last.ckpt"
    write(last, 1.0)
    write(last, 2.0)

    def fail(*args: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(checkpoint_files.os, "fsync", fail)
    with pytest.raises(
        CheckpointError, match=r"last\.ckpt: could not be saved \(no\); last\.ckpt is unchanged"
    ):
        write(last, 3.0)
    assert [value_of(last), value_of(tmp_path / "previous.ckpt")] == [2.0, 1.0]
    assert not list(tmp_path.glob("*.partial"))
    assert not list(tmp_path.glob(".*"))


def test_free_disk_space_is_checked_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    with pytest.raises(CheckpointError, match=r"1\.0 MiB are free, 1\.0 MiB needed\); there is no earlier"):
        write(tmp_path / "last.ckpt", 1.0)
    assert not list(tmp_path.iterdir())


def test_damage_is_detected_without_a_checksum(tmp_path: Path) -> None:
    file = tmp_path / "given.ckpt"
    torch.save(content(), file)
    assert find_damage(file) == ""
    file.write_bytes(file.read_bytes()[:-100])
    assert "damaged or not a checkpoint" in find_damage(file)
    assert find_damage(tmp_path) == "is not a file"


@pytest.mark.parametrize("address", ["http://a.org/x.ckpt", "s3://bucket/x", "file:///etc/x", "https:/a/x"])
def test_urls_are_rejected(address: str) -> None:
    with pytest.raises(InputError, match=r"ckpt_path=.*: a URL, but only local files are loaded"):
        checkpoint_files.read(address)


def test_nan_and_infinity_are_never_saved() -> None:
    module = make_module()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module.register_buffer("mask", torch.full((2,), -torch.inf))  # as in attention masks
    sum(weight.sum() for weight in module.parameters()).backward()
    optimizer.step()
    require_finite(module, [optimizer], 7)
    (weight, *_) = module.parameters()
    momentum = optimizer.state[weight]["momentum_buffer"]
    for tensor in (weight.data, momentum, module.mask):
        kept = tensor.clone()
        tensor.view(-1)[0] = torch.nan
        with pytest.raises(NonFiniteError, match=r"step 7: \S.* contains NaN or infinity"):
            require_finite(module, [optimizer], 7)
        tensor.copy_(kept)


def test_unloadable_values_are_reported_at_the_first_save(tmp_path: Path) -> None:
    bad = content() | {"callbacks": {"own": {"score": np.float64(1.0)}}}
    with pytest.raises(InputError, match=r"contains \S*numpy\S*, which cannot be loaded"):
        SafeCheckpointIO().save_checkpoint(bad, tmp_path / "last.ckpt")


def test_frequent_saves_are_delayed_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    write_file = checkpoint_files.write
    monkeypatch.setattr(
        checkpoint_files, "write", lambda path, *args: (written.append(path.name), write_file(path, *args))
    )
    best, last = tmp_path / "best.ckpt", tmp_path / "last.ckpt"
    saving = SafeCheckpointIO()
    for value in (1.0, 2.0, 3.0):
        saving.save_checkpoint(content(value), best)
        saving.save_checkpoint(content(value), last)
    assert written == ["best.ckpt", "last.ckpt"]
    assert [value_of(best), value_of(last)] == [1.0, 1.0]
    saving.teardown()
    assert written == ["best.ckpt", "last.ckpt"] * 2
    assert [value_of(best), value_of(last), value_of(tmp_path / "previous.ckpt")] == [3.0, 3.0, 1.0]

    monkeypatch.setattr(checkpoint_io, "MIN_INTERVAL_S", 0.0)
    saving.save_checkpoint(content(4.0), last)
    assert value_of(last) == 4.0
    saving.save_checkpoint(content(5.0), best)
    assert float(saving.load_checkpoint(best)["state_dict"]["weight"][0, 0]) == 5.0
    saving.remove_checkpoint(best)
    assert not list(tmp_path.glob("best*"))


def test_partial_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".last.ckpt.partial").write_bytes(b"half")
    SafeCheckpointIO().save_checkpoint(content(), tmp_path / "best.ckpt")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best.ckpt", "best.ckpt.sha256"]
