"""Tests of pauses by a search."""

from pathlib import Path

import pytest
from small_training import make_data, make_module, make_trainer

from project.callbacks.checkpointing import LastCheckpoint
from project.callbacks.trial_pause import TrialPause


@pytest.mark.parametrize(("epochs", "trained"), [(1, 1), (2, 2), (5, 2)])
def test_training_pauses_unless_it_is_complete(tmp_path: Path, epochs: int, trained: int) -> None:
    pause = TrialPause(epochs)
    trainer = make_trainer(tmp_path, [pause, LastCheckpoint(str(tmp_path))], max_epochs=2)
    trainer.fit(make_module(), make_data())
    assert (trainer.current_epoch, pause.paused) == (trained, epochs == 1)
    again = TrialPause(epochs)
    resumed = make_trainer(tmp_path, [again], max_epochs=2)
    resumed.fit(make_module(), make_data(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert (resumed.current_epoch, resumed.global_step, again.paused) == (
        *(trained, trainer.global_step, epochs == 1),
    )
