"""Tests of the parts of metrics' names."""

import pytest

from project.runs.metric_names import is_smaller_better, on_other_splits, parse


@pytest.mark.parametrize(
    ("name", "split", "kind"),
    [
        ("val/loss", "val", "loss"),
        ("val_loss", "val", "loss"),
        ("validation_f1_macro", "val", "f1_macro"),
        ("train_loss_epoch", "train", "loss"),
        ("test/recall_0", "test", "recall_0"),
        ("value", "", "value"),
        ("speed/images_per_s", "", "speed/images_per_s"),
    ],
)
def test_names_are_split(name: str, split: str, kind: str) -> None:
    assert parse(name) == (split, kind)


def test_other_splits_are_found_in_both_spellings() -> None:
    known = ["train_loss", "val_loss", "test_loss", "val_acc", "loss"]
    assert on_other_splits("val_loss", known) == ["test_loss", "train_loss"]
    assert on_other_splits("val/acc", ["val/acc", "test/acc", "test/loss"]) == ["test/acc"]
    assert on_other_splits("loss", known) == []


def test_directions_are_guessed_from_names() -> None:
    assert all(map(is_smaller_better, ("val/loss", "val_rmse", "test/wer", "perplexity", "duration_s")))
    assert not any(map(is_smaller_better, ("val/acc", "answer", "f1", "image")))
