"""Run folders and downloads that several processes want at once."""

import errno
import json
import logging
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import forked_attempts
import pytest
from written_runs import write_run

from project.callbacks.checkpointing import LastCheckpoint
from project.config import resume
from project.datamodules import downloads
from project.errors import InputError
from project.inference.load_run import load_run
from project.runs.folders import create_folder
from project.runs.results import read_runs
from project.runs.run_folder import RunFolder, find_run, latest_run, run_of_checkpoint
from project.runtime.output_files import missing_folders, refuse_unwritable_output
from project.runtime.process import command_state


def test_runs_that_start_in_the_same_instant_get_folders_of_their_own(tmp_path: Path) -> None:
    start = threading.Barrier(16)

    def one(_: int) -> Path:
        start.wait()
        return create_folder(tmp_path / "day" / "run")

    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(one, range(16)))
    assert len(set(folders)) == 16
    assert tmp_path / "day" / "run" in folders
    assert tmp_path / "day" / "run-16" in folders


@pytest.mark.parametrize(
    "wanted", ["file/run", "link/run", f"new/{'x' * 256}", f"{'x' * 256}/run", "/proc/x"]
)
def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path, wanted: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"hydra\.run\.dir: cannot make the run folder"):
        create_folder(tmp_path / wanted, "hydra.run.dir")
    with pytest.raises(InputError, match=r"output=x: cannot be written \("):
        refuse_unwritable_output("output=x", tmp_path / wanted, folder=True)
    with pytest.raises(InputError, match=r"output=x: cannot be written \("):
        refuse_unwritable_output("output=x", tmp_path / wanted)
    assert sorted(tmp_path.iterdir()) == before


def test_the_probe_of_an_output_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("old")
    for file in ("old.csv", "new.csv", "a/b/new.csv", "/dev/null"):
        refuse_unwritable_output("output=x", tmp_path / file)
    refuse_unwritable_output("output=x", tmp_path / "a" / "b", folder=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old.csv"]
    assert (tmp_path / "old.csv").read_text() == "old"
    with pytest.raises(InputError, match=r"output=x: is a folder; give a file name"):
        refuse_unwritable_output("output=x", tmp_path)
    with pytest.raises(ValueError, match="failed"), missing_folders(tmp_path / "a" / "b"):
        raise ValueError("failed")
    assert not (tmp_path / "a").exists()


def test_a_full_disk_is_reported_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.write", full)
    with pytest.raises(InputError, match=r"output=x: cannot be written \(No space left on device\)"):
        refuse_unwritable_output("output=x", tmp_path / "a" / "new.csv")
    assert not list(tmp_path.iterdir())


def test_a_parent_that_others_remove_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removals = iter(range(3))
    mkdir = Path.mkdir

    def racing(path: Path, *args: Any, **options: Any) -> None:
        if path.name == "run" and next(removals, None) is not None:
            path.parent.rmdir()
        mkdir(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", racing)
    assert create_folder(tmp_path / "day" / "run") == tmp_path / "day" / "run"


def test_the_status_tells_how_a_run_ended(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with run.recording(name="x") as status:
        assert run.read_status()["state"] == "running"
        status["value"] = 0.5
    done = run.read_status()
    assert (done["state"], done["value"], done["name"], done["error"]) == ("done", 0.5, "x", None)
    assert done["duration_s"] >= 0
    assert done["versions"]["lightning"]
    with pytest.raises(RuntimeError, match="broken"), run.recording():
        raise RuntimeError("broken")
    assert run.read_status()["state"] == "failed"
    assert run.read_status()["error"] == "RuntimeError: broken"
    with pytest.raises(KeyboardInterrupt, match=r"^$"), run.recording():
        raise KeyboardInterrupt
    assert run.read_status()["state"] == "interrupted"
    with pytest.raises(SystemExit), run.recording():
        raise SystemExit(143)  # as after a signal
    assert run.read_status()["state"] == "interrupted"
    with pytest.raises(SystemExit), run.recording():
        raise SystemExit(0)
    assert run.read_status()["state"] == "failed"
    assert "the code called sys.exit() before the run was complete" in run.read_status()["error"]
    assert not list(tmp_path.glob("*.partial"))


def test_a_result_outlives_the_end_of_other_ranks(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with run.recording() as result:
        result["value"] = 0.5
        run.record_end("killed", interrupted=False)
        assert run.read_status()["state"] == "failed"
    run.record_end("told to stop", interrupted=True)
    assert (run.read_status()["state"], run.read_status()["value"]) == ("done", 0.5)


@pytest.mark.parametrize("text", ["", "[1]", "null", "\udc80", '{"pid": null, "started": 3, "value": 1.5}'])
def test_a_status_that_is_damaged_counts_as_none(tmp_path: Path, text: str) -> None:
    run = RunFolder(tmp_path)
    run.status_file.write_bytes(text.encode(errors="surrogateescape"))
    assert run.read_status() == ({"value": 1.5} if "value" in text else {})


@pytest.mark.parametrize("wanted", ["", ".", "..", "/"])
def test_names_of_no_new_folder_are_refused(wanted: str) -> None:
    with pytest.raises(InputError, match=r"hydra.run.dir"):
        create_folder(wanted)


def test_a_run_that_was_never_trained_leaves_nothing(tmp_path: Path) -> None:
    for name, trained, claimed in (("empty", False, True), ("trained", True, True), ("mine", False, False)):
        run = RunFolder(tmp_path / name)
        if claimed:
            create_folder(run.path)
        else:  # a folder that existed before
            run.path.mkdir()
        if trained:
            run.checkpoints.mkdir()
        with pytest.raises(ValueError, match="wrong"), run.removed_if_untrained():
            raise ValueError("wrong")
        assert run.path.exists() == (trained or not claimed)


def test_the_latest_run_is_found(tmp_path: Path) -> None:
    for number, name in enumerate(("b", "c", "a")):
        folder = tmp_path / name
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "config.yaml").touch()
        (folder / "status.json").write_text(json.dumps({"started": f"2026-01-0{number + 1}"}))
    assert find_run("last", tmp_path).path == tmp_path / "a"
    assert find_run(str(tmp_path / "b"), tmp_path).path == tmp_path / "b"
    found = run_of_checkpoint(tmp_path / "b" / "checkpoints" / "last.ckpt")
    assert found is not None
    assert found.path == tmp_path / "b"
    assert run_of_checkpoint(tmp_path / "loose.ckpt") is None
    with pytest.raises(InputError, match=r"resume=last: no run folder"):
        find_run("last", tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"no run folder"):
        find_run(str(tmp_path), tmp_path)


GOOD = {"one": "f97c5d29941bfb1b2fdab0874906ab82", "two": "b8a9f715dbb64fd5c56e7783c6820a61"}


def write_files(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name in GOOD:
        (folder / name).write_text(name)


def test_one_process_downloads_and_the_others_wait(tmp_path: Path) -> None:
    calls = []
    start = threading.Barrier(8)

    def fetch(_: int) -> None:
        start.wait()
        downloads.ensure_downloaded(
            "toy", tmp_path, Path("set"), GOOD, lambda folder: (calls.append(1), write_files(folder))
        )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fetch, range(8)))
    assert len(calls) == 1
    assert {file.read_text() for file in (tmp_path / "set").iterdir()} == set(GOOD)
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".download")] == []


def test_damaged_files_are_fetched_again(tmp_path: Path) -> None:
    write_files(tmp_path / "set")
    (tmp_path / "set" / "two").write_text("tvo")
    downloads.ensure_downloaded("toy", tmp_path, Path("set"), GOOD, write_files)
    assert (tmp_path / "set" / "two").read_text() == "two"


def test_without_a_network_one_line_says_what_to_do(tmp_path: Path) -> None:
    def offline(folder: Path) -> None:
        raise OSError("Name or service\nnot known")

    with pytest.raises(InputError, match=r"paths\.data=.*data=toy .*not known.*data=digits") as raised:
        downloads.ensure_downloaded("toy", tmp_path, Path("set"), GOOD, offline)
    assert "\n" not in str(raised.value)


def test_a_download_that_arrives_damaged_is_not_kept(tmp_path: Path) -> None:
    def damaged(folder: Path) -> None:
        write_files(folder)
        (folder / "one").write_text("0ne")

    with pytest.raises(InputError, match=r"one is damaged: MD5"):
        downloads.ensure_downloaded("toy", tmp_path, Path("set"), GOOD, damaged)
    assert not (tmp_path / "set").exists()


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX processes")
def test_present_files_need_no_lock_and_no_network(tmp_path: Path) -> None:
    write_files(tmp_path / "set")

    def never(folder: Path) -> None:
        raise AssertionError

    downloads.ensure_downloaded("toy", tmp_path, Path("set"), GOOD, never)
    assert not (tmp_path / ".toy.lock").exists()


def test_trials_count_only_where_there_is_nothing_else(tmp_path: Path) -> None:
    write_run(tmp_path / "outputs" / "debug" / "one_batch", trial=True, started="2026-03-01T00:00:00+00:00")
    for folder in (tmp_path / "outputs", tmp_path / "outputs" / "debug"):
        assert latest_run(folder).path.name == "one_batch"
        assert [run.folder.name for run in read_runs([folder])[0]] == ["one_batch"]
    write_run(tmp_path / "outputs" / "real", started="2026-01-01T00:00:00+00:00")
    assert latest_run(tmp_path / "outputs").path.name == "real"
    assert [run.folder.name for run in read_runs([tmp_path / "outputs"])[0]] == ["real"]
    assert latest_run(tmp_path / "elsewhere") is None


def test_a_removed_folder_is_written_again_from_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunFolder(tmp_path / "day" / "run")
    run.composed_file.parent.mkdir(parents=True)
    for file, text in (
        (run.composed_file, "seed: 1\n"),
        (run.hydra_file, "x: 2\n"),
        (run.config_file, "seed: 1\n"),
    ):
        file.write_text(text)
    run.write_status(state="running", started="now", name="a")
    run.keep_config()
    for epoch in range(3):
        shutil.rmtree(tmp_path / "day")
        assert run.write_status(progress={"epoch": epoch})
        assert run.composed_file.read_text() == run.config_file.read_text() == "seed: 1\n"
        assert run.hydra_file.read_text() == "x: 2\n"
        status = json.loads(run.status_file.read_text())
        assert status == {"state": "running", "started": "now", "name": "a", "progress": {"epoch": epoch}}
    (told,) = (one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING)
    assert "was removed during the run" in told


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_run_whose_folder_is_removed_can_be_resumed_and_evaluated(tmp_path: Path, epoch: int) -> None:
    """Remove the folder at the end of an epoch, after all writes."""

    def remove_folder_at_the_end_of_an_epoch() -> None:
        end = LastCheckpoint.on_train_epoch_end

        def end_and_remove(self: LastCheckpoint, trainer: Any, module: Any) -> None:
            end(self, trainer, module)
            if trainer.current_epoch == epoch:
                shutil.rmtree(self.path.parent.parent)

        LastCheckpoint.on_train_epoch_end = end_and_remove

    words = ["data=synthetic", "data.train_size=32", "data.val_size=8", "data.test_size=8", "model=mlp"]
    words += ["data.batch_size=16", "trainer.accelerator=cpu", "trainer.max_epochs=3", "hydra.run.dir=run"]
    printed = forked_attempts.run(words, tmp_path, before=remove_folder_at_the_end_of_an_epoch)
    assert printed.count("was removed during the run") == 1
    assert "Traceback" not in printed
    run = RunFolder(tmp_path / "run")
    status = run.read_status()
    assert (status["state"], status["name"], "started" in status) == ("done", "mlp_synthetic_adam", True)
    assert {file.name for file in run.composed_file.parent.iterdir()} == {
        *("config.yaml", "hydra.yaml", "overrides.yaml")
    }
    load_run(run)
    resumed = forked_attempts.run(["resume=run", "trainer.max_epochs=4"], tmp_path)
    assert "Traceback" not in resumed
    assert run.read_status()["progress"]["epoch"] == 4


def test_a_run_does_not_resume_from_the_checkpoint_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "find_damage", lambda _: "")
    monkeypatch.setattr(command_state, "resumed_run", None)
    for name in ("a", "b"):
        (tmp_path / name / ".hydra").mkdir(parents=True)
        (tmp_path / name / ".hydra" / "config.yaml").touch()
    mine, other = (tmp_path / name / "checkpoints" / "best.ckpt" for name in ("a", "b"))
    with pytest.raises(
        InputError, match=r"resume=.*/a ckpt_path=.*/b/.*: the checkpoint belongs to another run"
    ):
        resume.detach_resumed(
            [f"resume={tmp_path / 'a'}", f"ckpt_path={other}", "paths.outputs=x"], tmp_path / "train.yaml"
        )
    with pytest.raises(
        InputError, match=r"retry_failed=true: for sweeps only, and resume=.*/a .* is a single"
    ):
        resume.detach_resumed(
            [f"resume={tmp_path / 'a'}", f"ckpt_path={mine}", "retry_failed=true", "paths.outputs=x"],
            tmp_path / "train.yaml",
        )
    told = [f"resume={tmp_path / 'a'}", f"ckpt_path={mine}", "paths.outputs=x"]
    assert resume.detach_resumed(told, tmp_path / "train.yaml") == told
    assert command_state.resumed_run is not None
    assert command_state.resumed_run.checkpoint == mine
