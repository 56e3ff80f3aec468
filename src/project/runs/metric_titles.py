"""What figures of an evaluation are called. Needs no torch."""

TITLES = {
    "accuracy": "accuracy",
    "top5_accuracy": "top-5 accuracy",
    "loss": "loss",
    "nll": "negative log likelihood",
    "brier": "Brier score",
    "ece": "calibration error (ECE)",
    "macro_precision": "precision, macro average",
    "macro_recall": "recall, macro average",
    "macro_f1": "F1, macro average",
}
"""By their keys in evaluation.json, in the order of tables."""
