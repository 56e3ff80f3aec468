"""What a search has found: the best trials, what mattered, and pictures of both."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from project.runs.ranking import Score, rank
from project.runs.sweep_folder import SweepFolder
from project.runtime.csv_cells import escape_all
from project.sweeps.job_table import layout, written_if_possible

MOST_ROWS = 10
BLUE, GRAY, RED = "#1f77b4", "#b0b0b0", "#d62728"


def report(folder: SweepFolder, study: optuna.Study, names: Sequence[str]) -> str:
    """Write `trials.csv` and pictures into a folder.

    Args:
        folder: the sweep's.
        study: Optuna's.
        names: of its objectives.

    Returns:
        The best trials and the parameters' importances, as text.
    """
    trials = study.get_trials(deepcopy=False)
    with written_if_possible(folder.shown):
        _write_csv(folder.path / "trials.csv", trials, names)
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not done:
        return "no trial is done"
    best = _best(study, done)
    importances = _importances(study, done) if len(names) == 1 else {}
    with written_if_possible(folder.shown):
        _draw(folder.path, study, trials, names, importances)
    title = "best trials" if len(names) == 1 else "trials that no other one beats in every objective"
    text = f"{title}:\n{_table(best[:MOST_ROWS], names)}"
    if importances:
        shares = ", ".join(f"{key} {share:.0%}" for key, share in importances.items())
        text += f"\n\nimportance of the parameters (PED-ANOVA): {shares}"
    pictures = (file.name for file in sorted(folder.path.glob("*.png")))
    return f"{text}\nin {folder.shown}: trials.csv, {', '.join(pictures)}"


def _best(study: optuna.Study, done: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    if len(study.directions) > 1:
        return study.best_trials
    larger = study.direction.name == "MAXIMIZE"
    return rank(done, lambda trial: Score(tuple(trial.values), 1), larger_is_better=larger)


def _importances(study: optuna.Study, done: Sequence[FrozenTrial]) -> dict[str, float]:
    """Shares that add up to 1, the largest first; none where too little is known.

    Method: PED-ANOVA, Watanabe et al., https://arxiv.org/abs/2304.10255.
    """
    if len(done) < 4 or len({trial.value for trial in done}) < 2:
        return {}
    # Takes 2 s where scikit-learn is installed, which a search does not wait for when it starts.
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    try:
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    except (RuntimeError, ValueError):  # of parameters that never varied
        return {}


def _table(trials: Sequence[FrozenTrial], names: Sequence[str]) -> str:
    keys = list(dict.fromkeys(key for trial in trials for key in trial.params))
    rows = [
        [
            str(trial.number),
            *(_short(trial.params.get(key)) for key in keys),
            *(f"{value:.4f}" for value in trial.values),
        ]
        for trial in trials
    ]
    return layout(["trial", *keys, *names], rows)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value if value is not None else "")


def _write_csv(file: Path, trials: Sequence[FrozenTrial], names: Sequence[str]) -> None:
    keys = list(dict.fromkeys(key for trial in trials for key in trial.params))
    partial = file.with_suffix(".csv.partial")
    with partial.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(escape_all(["trial", "state", *keys, *names, "reports"]))
        for trial in trials:
            values = trial.values or [""] * len(names)
            settings = [trial.params.get(key, "") for key in keys]
            reports = len(trial.intermediate_values)
            cells = [trial.number, trial.state.name.lower(), *settings, *values, reports]
            writer.writerow(escape_all(cells))
    partial.replace(file)


def _draw(
    folder: Path,
    study: optuna.Study,
    trials: Sequence[FrozenTrial],
    names: Sequence[str],
    importances: Mapping[str, float],
) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    if len(names) == 1:
        _draw_history(plt, folder / "history.png", study, trials, names[0])
    elif len(names) == 2:
        _draw_front(plt, folder / "front.png", study, trials, names)
    if importances:
        _draw_importances(plt, folder / "importances.png", importances)


def _draw_history(
    plt: Any, file: Path, study: optuna.Study, trials: Sequence[FrozenTrial], name: str
) -> None:
    better = max if study.direction.name == "MAXIMIZE" else min
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE and trial.value is not None]
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED and trial.intermediate_values]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot([t.number for t in done], [t.value for t in done], "o", color=BLUE, label="done")
    last = [trial.intermediate_values[max(trial.intermediate_values)] for trial in pruned]
    if pruned:
        axes.plot([t.number for t in pruned], last, "x", color=GRAY, label="pruned, last report")
    best: list[float] = []
    for trial in done:
        best.append(better([*best[-1:], float(trial.value or 0.0)]))
    axes.step([t.number for t in done], best, where="post", color=RED, label="best so far")
    axes.set(xlabel="trial", ylabel=name)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _draw_importances(plt: Any, file: Path, importances: Mapping[str, float]) -> None:
    figure, axes = plt.subplots(figsize=(7, 1 + 0.4 * len(importances)), layout="constrained")
    bars = axes.barh(list(importances), list(importances.values()), color=BLUE)
    axes.bar_label(bars, fmt="{:.0%}", padding=3)
    axes.invert_yaxis()
    axes.set(xlabel="importance (PED-ANOVA)", xlim=(0, 1.1 * max(importances.values())))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _draw_front(
    plt: Any, file: Path, study: optuna.Study, trials: Sequence[FrozenTrial], names: Sequence[str]
) -> None:
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    front = sorted(study.best_trials, key=lambda trial: trial.values[0])
    figure, axes = plt.subplots(figsize=(6, 5), layout="constrained")
    axes.plot([t.values[0] for t in done], [t.values[1] for t in done], "o", color=GRAY, label="trials")
    axes.plot([t.values[0] for t in front], [t.values[1] for t in front], "o-", color=RED, label="front")
    for trial in front:
        axes.annotate(str(trial.number), trial.values, textcoords="offset points", xytext=(4, 4))
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=150)
    plt.close(figure)
