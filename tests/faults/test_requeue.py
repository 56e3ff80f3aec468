"""A run in a SLURM job: the warning signal before the time limit, and the restart."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from process_groups import START_LIMIT_S, Run, only_run, preload, wait_until

from project.runs import checkpoint_files
from project.runtime import slurm

TINY = (
    *("model=mlp", "data=synthetic", "data.train_size=20000", "data.test_size=64", "logger=none"),
    *(
        "trainer.accelerator=cpu",
        "~callbacks.early_stopping",
        "trainer.max_epochs=8",
        "paths.image_cache=null",
    ),
)


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fake `scontrol` that records its arguments and the checkpoint, and the environment of a job."""
    told = tmp_path / "told"
    script = tmp_path / "bin" / "scontrol"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$@" >> {told}\nls outputs/*/*/checkpoints >> {told}\n')
    script.chmod(0o755)
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4321")
    return told


def test_a_warning_signal_saves_requeues_and_resumes(
    scontrol: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preload()
    run = Run(tmp_path, *TINY)
    try:
        wait_until(
            lambda: run.poll() is not None or bool(list(tmp_path.glob("outputs/*/*/checkpoints/*.ckpt"))),
            START_LIMIT_S,
            run.describe,
        )
        os.kill(run.pid, signal.SIGUSR1)
        assert run.wait(60) == 75, run.describe()
    finally:
        run.end()
    assert "SLURM will start job 4321 again" in run.text()
    assert scontrol.read_text().splitlines()[0] == "requeue 4321"
    assert checkpoint_files.LAST in scontrol.read_text()
    folder = only_run(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    again = Run(tmp_path, *TINY)
    try:
        assert again.wait(START_LIMIT_S) == 0, again.describe()
    finally:
        again.end()
    assert only_run(tmp_path) == folder  # the same folder, and no other
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    epochs = re.findall(r"^ +(\d)/8 ", again.text(), re.MULTILINE)  # of both runs
    assert "".join(epochs) in ("12345678", "2345678"), again.text()
    assert scontrol.read_text().count("requeue") == 1


def test_a_run_is_found_by_its_job_and_command(
    scontrol: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = tmp_path / "outputs" / "now"
    monkeypatch.setattr(sys, "argv", ["train.py", "+logger.w.api_key=abcdefgh"])
    written = ["train.py", "+logger.w.api_key=REDACTED"]
    for name, job, command in (("a", "4321", ["x"]), ("b", "4321", written), ("c", "1", written)):
        (tmp_path / "outputs" / name).mkdir(parents=True)
        status = {"slurm_job": job, "command": command, "started": name}
        (tmp_path / "outputs" / name / "status.json").write_text(json.dumps(status))
    assert slurm.find_run(wanted) is None  # at the first start
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert slurm.find_run(wanted) == tmp_path / "outputs" / "b"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "4000")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    assert slurm.find_run(wanted) is None
    slurm.requeue()
    assert scontrol.read_text().splitlines()[0] == "requeue 4000_7"


def test_a_refused_requeue_is_reported(
    scontrol: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "bin" / "scontrol"
    script.write_text("#!/bin/sh\necho 'slurm_requeue error: disabled' >&2\nexit 1\n")
    slurm.requeue()
    told = "SLURM does not requeue job 4321 (slurm_requeue error: disabled); submit it with --requeue\n"
    assert capsys.readouterr().err == told
    script.unlink()
    monkeypatch.setenv("PATH", str(script.parent))
    slurm.requeue()
    assert capsys.readouterr().err.startswith("SLURM does not requeue job 4321 (")
