"""Damaged checkpoints: the previous one is used, or one line reports the damage."""

import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from forked_attempts import only_run, run

from project.runs import checkpoint_files
from project.runs.run_folder import RunFolder

RUN = [
    *("model=mlp", "model.widths=[16]", "data=digits", "data.batch_size=256", "trainer.max_epochs=2"),
    "trainer.accelerator=cpu",
]
HTML = b"<!DOCTYPE html><html><head><title>404 Not Found</title></head><body>Not Found</body></html>"


def truncate(file: Path) -> None:
    """Keep the first half, as after a full disk."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    """Remove the content, as a power failure does on some file systems."""
    file.write_bytes(b"")


def garbage(file: Path) -> None:
    """Replace the content by random bytes of the same length."""
    file.write_bytes(random.Random(0).randbytes(file.stat().st_size))


def html(file: Path) -> None:
    """Replace the content by the error page of a server."""
    file.write_bytes(HTML)


def flip(file: Path, seed: int = 0) -> None:
    """Flip a random bit."""
    content = bytearray(file.read_bytes())
    draws = random.Random(seed)
    content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
    file.write_bytes(content)


def other_architecture(file: Path) -> None:
    """Replace a weight by one of another shape, in an undamaged file."""
    _rewrite(
        file, lambda content: content["state_dict"].update({"network.layers.1.weight": torch.zeros(3, 784)})
    )


def other_version(file: Path) -> None:
    """Remove entries, as in a checkpoint of another program or version."""
    _rewrite(file, lambda content: [content.pop(name) for name in ("loops", "pytorch-lightning_version")])


def missing(file: Path) -> None:
    """Remove the file, but not its checksum."""
    file.unlink()


KINDS: dict[str, Callable[[Path], None]] = {
    function.__name__: function
    for function in (truncate, empty, garbage, html, flip, other_architecture, other_version, missing)
}


def _rewrite(file: Path, change: Callable[[dict[str, object]], object]) -> None:
    content = torch.load(file, weights_only=True)
    change(content)
    torch.save(content, file)


def newest_is_passed_over(whole: RunFolder, work: Path, damage: Callable[[Path], None]) -> None:
    """Damage `last.ckpt` in a copy of a run, and check that a resumed run starts from `previous.ckpt`."""
    copy = _copy(whole, work)
    damage(copy.last_checkpoint)
    printed = run([f"resume={copy.path}", "trainer.max_epochs=3"], work / "cwd")
    assert f"{copy.last_checkpoint} is" in printed, printed
    assert "resuming from previous.ckpt" in printed, printed
    assert "Traceback" not in printed, printed
    assert checkpoint_files.read(copy.last_checkpoint)["epoch"] == 2


def one_line_if_none_is_left(whole: RunFolder, work: Path, damage: Callable[[Path], None]) -> None:
    """Damage all checkpoints, with and without checksum files: expect one error line and exit code 2."""
    for without_checksums in (False, True):
        copy = _copy(whole, work)
        for file in list(copy.checkpoints.glob("*.ckpt")):
            damage(file)
            if without_checksums:
                file.with_name(f"{file.name}.sha256").unlink()
        for argument in (f"resume={copy.path}", f"ckpt_path={copy.last_checkpoint}"):
            printed = run([argument, "trainer.max_epochs=3"], work / "cwd", code=2)
            errors = [line for line in printed.splitlines() if line.startswith("error:")]
            assert len(errors) == 1, printed
            assert "Traceback" not in printed, printed
            assert str(copy.checkpoints) in errors[0], printed


def flips_found(whole: RunFolder, work: Path, count: int) -> int:
    """Flip a random bit of the newest checkpoint `count` times; return the number of detected flips."""
    found = 0
    for seed in range(count):
        copy = _copy(whole, work)
        flip(copy.last_checkpoint, seed)
        newest = copy.newest_checkpoint()
        assert newest.path is not None
        found += newest.path.name == checkpoint_files.PREVIOUS and len(newest.damaged) == 1
    return found


def _copy(whole: RunFolder, work: Path) -> RunFolder:
    copy = work / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole.path, copy)
    return RunFolder(copy)


def full() -> str:
    """Test all kinds of damage and 100 flipped bits; return the results."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run(RUN, work)
        whole = only_run(work)
        for damage in KINDS.values():
            newest_is_passed_over(whole, work, damage)
            one_line_if_none_is_left(whole, work, damage)
        found = flips_found(whole, work, 100)
        assert found == 100, f"{found} of 100 flipped bits were found"
    return (
        f"{len(KINDS)} kinds of damage ({', '.join(KINDS)}): the checkpoint before it was used in "
        f"{len(KINDS)} of {len(KINDS)}, with none left it was one line in {4 * len(KINDS)} of "
        f"{4 * len(KINDS)}; {found} of 100 flipped bits found"
    )
