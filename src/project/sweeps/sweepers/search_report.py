"""Report of a search: best trials, parameter importance, and figures of both."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from project.runs.ranking import Score, rank
from project.runs.sweep_folder import SweepFolder
from project.runtime.console import table
from project.sweeps.job_table import warn_if_unwritable, write_rows
from project.sweeps.sweepers.search_space import REPEATS

MAX_ROWS = 10


def write_report(folder: SweepFolder, study: optuna.Study, metrics: Sequence[str]) -> str:
    """Write `trials.csv` and figures into a sweep's folder.

    Returns:
        Text with the best trials and the parameter importance.
    """
    trials = study.get_trials(deepcopy=False)
    with warn_if_unwritable(folder.shown):
        _write_trials(folder.path / "trials.csv", trials, metrics)
    done = [
        trial for trial in trials if trial.state == TrialState.COMPLETE and REPEATS not in trial.user_attrs
    ]
    if not done:
        return "no trial is done"
    importances = _importances(study, done) if len(metrics) == 1 else {}
    with warn_if_unwritable(folder.shown):
        _draw(folder.path, study, metrics, has_importances=bool(importances))
    if len(metrics) == 1:
        is_max = study.direction.name == "MAXIMIZE"
        best = rank(done, lambda trial: Score(tuple(trial.values), 1), larger_is_better=is_max)
        title = "best trials"
    else:
        best = [trial for trial in study.best_trials if REPEATS not in trial.user_attrs]
        title = "Pareto front: trials that no other trial beats in every objective"
    lines = [f"{title}:", _trials_table(best[:MAX_ROWS], metrics)]
    if importances:
        shares = ", ".join(f"{key} {share:.0%}" for key, share in importances.items())
        lines += ["", f"importance of the parameters (PED-ANOVA): {shares}"]
    figures = ", ".join(sorted(file.name for file in folder.path.glob("*.png")))
    return "\n".join([*lines, f"in {folder.shown}: trials.csv, {figures}"])


def _importances(study: optuna.Study, done: Sequence[FrozenTrial]) -> dict[str, float]:
    """Return the importance of each parameter (sum 1, largest first); empty for too few or equal trials.

    Method: PED-ANOVA, Watanabe et al., https://arxiv.org/abs/2304.10255.
    """
    if len(done) < 4 or len({trial.value for trial in done}) < 2:
        return {}
    # Imported here, not at the start of a search: takes 2 s if scikit-learn is installed.
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    try:
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    except (RuntimeError, ValueError):  # raised if a parameter never varied
        return {}


def _find_keys(trials: Sequence[FrozenTrial]) -> list[str]:
    return list(dict.fromkeys(key for trial in trials for key in trial.params))


def _trials_table(trials: Sequence[FrozenTrial], metrics: Sequence[str]) -> str:
    keys = _find_keys(trials)
    rows = []
    for trial in trials:
        settings = [trial.params.get(key, "") for key in keys]
        shown = [f"{value:.4g}" if isinstance(value, float) else value for value in settings]
        rows.append([trial.number, *shown, *(f"{value:.4f}" for value in trial.values)])
    return table(["trial", *(key.rpartition(".")[2] for key in keys), *metrics], rows)


def _write_trials(file: Path, trials: Sequence[FrozenTrial], metrics: Sequence[str]) -> None:
    keys = _find_keys(trials)
    rows: list[list[Any]] = [
        [
            *(trial.number, trial.state.name.lower(), *(trial.params.get(key, "") for key in keys)),
            *(*(trial.values or [""] * len(metrics)), len(trial.intermediate_values)),
        ]
        for trial in trials
    ]
    write_rows(file, ["trial", "state", *keys, *metrics, "reports"], rows)


def _draw(folder: Path, study: optuna.Study, metrics: Sequence[str], *, has_importances: bool) -> None:
    """Draw the optimization history or Pareto front, and the parameter importance."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.visualization import matplotlib as charts

    axes = {}
    if len(metrics) == 1:
        axes["history"] = charts.plot_optimization_history(study, target_name=metrics[0])
    elif len(metrics) == 2:
        axes["front"] = charts.plot_pareto_front(study, target_names=list(metrics))
    if has_importances:
        evaluator = PedAnovaImportanceEvaluator()
        axes["importances"] = charts.plot_param_importances(
            study, evaluator=evaluator, target_name=metrics[0]
        )
    for name, drawn in axes.items():
        plt.sca(drawn)
        plt.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
        plt.close()
