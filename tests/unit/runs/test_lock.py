"""Detection of running runs by locks, processes and recent files."""

import os
import platform
import time
from pathlib import Path

import pytest

from project.errors import InputError
from project.runs import folders
from project.runs.folders import folder_lock, running_host, running_process


def test_only_one_process_works_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "ENDING_S", 0.1)
    with (
        folder_lock(tmp_path),
        pytest.raises(InputError, match="in use by another process"),
        folder_lock(tmp_path),
    ):
        pass
    with folder_lock(tmp_path):
        pass


def test_a_process_counts_if_it_is_as_old_as_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "ENDING_S", 0.1)
    status = {"state": "running", "host": platform.node(), "pid": os.getpid()}
    now = "2999-01-01T00:00:00+00:00"
    assert running_process(status | {"started": now}) == os.getpid()
    if Path("/proc/stat").exists():
        assert running_process(status | {"started": "2001-01-01T00:00:00+00:00"}) is None
    for other in ({"state": "done"}, {"host": "elsewhere"}, {"pid": None}, {"pid": 2**22 + 1}):
        assert running_process(status | {"started": now} | other) is None


def test_a_run_on_another_machine_counts_as_running_while_it_writes(tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    file.touch()
    status = {"state": "running", "host": "elsewhere"}
    assert running_host(tmp_path, status) == "elsewhere"
    assert running_host(tmp_path, status | {"state": "failed"}) == ""
    assert running_host(tmp_path, status | {"host": platform.node()}) == ""
    os.utime(file, (time.time() - 3600,) * 2)
    assert running_host(tmp_path, status) == ""
