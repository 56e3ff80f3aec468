"""Lightning modules of the usual kinds train and resume by `task._target_` without a change."""

import signal
from pathlib import Path

import forked_command
import pytest
from conftest import Compose, read_table
from killed_examples import MARK, OWN_TASKS, assert_equal_runs, runs_below, words_for
from table_examples import write_tables

from project.config.validation import find_problems

EXAMPLES = {  # module: (data module, monitored metric, its direction)
    "DigitClassifier": ("RandomDigits", "val_acc", "max"),
    "LitAutoEncoder": ("RandomDigits", "val_loss", "min"),
    "LitVAE": ("RandomDigits", "val_loss", "min"),
    "LitGAN": ("RandomDigits", "g_loss", "min"),
    "LanguageModel": ("TokenData", "val/perplexity", "min"),
    "FineTuned": ("RandomDigits", "val_acc", "max"),
    "Siamese": ("PairData", "valid_loss", "min"),
    "Forecaster": ("SeriesData", "val_loss", "min"),
    "SuperResolution": ("LowHighData", "val/psnr", "max"),
    "BootstrapYourOwnLatent": ("RandomDigits", "train_loss", "min"),
    "Segmenter": ("MaskData", "val_iou", "max"),
    "PolicyGradient": (None, "reward", "max"),  # its own loaders
    "SemiSupervised": (None, "val_acc", "max"),
}


def words(module: str) -> list[str]:
    data, monitor, mode = EXAMPLES[module]
    return [
        "task=custom",
        f"task._target_=lightning_examples.{module}",
        f"data._target_=lightning_examples.{data}" if data else "data=task_loaders",
        f"monitor={monitor}",
        f"mode={mode}",
        "trainer.max_epochs=3",
        "trainer.log_every_n_steps=2",
    ]


@pytest.mark.filterwarnings("ignore:.*have no `validation_step`.*")  # Lightning's, of BYOL
@pytest.mark.parametrize("module", EXAMPLES)
def test_example_trains_unchanged(module: str, tmp_path: Path) -> None:
    forked_command.run(*words(module), cwd=tmp_path)
    (status,) = tmp_path.glob("outputs/*/*/status.json")
    run = status.parent
    rows = read_table(run / "metrics.csv")
    monitor = EXAMPLES[module][1]
    columns = (monitor, f"{monitor}_epoch")  # Lightning adds the ending to what is logged by step, too
    assert any(row.get(column) for row in rows for column in columns), rows[0].keys()
    assert (run / "checkpoints" / "best.ckpt").exists()
    assert (run / "checkpoints" / "last.ckpt").exists()


def test_default_data_do_not_replace_the_loaders_of_a_module(composer: Compose) -> None:
    chosen = [text for text in words("SemiSupervised") if text != "data=task_loaders"]
    problem = (
        "data=digits: would replace train_dataloader of SemiSupervised; set data=task_loaders, or name the "
    )
    assert list(find_problems(composer(*chosen))) == [f"{problem}data set (data=digits)"]
    assert list(find_problems(composer(*chosen, "data=digits"))) == []


def test_the_loaders_of_a_module_without_loaders_are_refused(composer: Compose) -> None:
    chosen = [text for text in words("Forecaster") if not text.startswith("data.")]
    problem = "data=task_loaders: Forecaster has no train_dataloader; define one, or name a data set"
    assert problem in find_problems(composer(*chosen, "data=task_loaders"))


@pytest.mark.parametrize("task", OWN_TASKS)
def test_example_killed_within_an_epoch_resumes_bit_equal(task: str, tmp_path: Path) -> None:
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    for folder in (unbroken, killed):
        folder.mkdir()
        write_tables(folder)
    (unbroken / MARK).touch()
    forked_command.run(*words_for(task), cwd=unbroken)
    forked_command.run(*words_for(task), cwd=killed, code=-signal.SIGKILL)
    forked_command.run("resume=last", cwd=killed)
    assert_equal_runs(*runs_below(unbroken), *runs_below(killed))
