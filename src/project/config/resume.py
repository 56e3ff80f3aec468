"""Resume a run or sweep from its folder and checkpoint, with its own configuration and changed values."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from project.config.hydra_patches import parse_command_line
from project.config.suggestions import explain_key, options
from project.errors import InputError
from project.runs.checkpoint_files import find_damage
from project.runs.config_diff import find_changes, find_refusals
from project.runs.folders import running_host, running_process
from project.runs.migrations import migrate
from project.runs.run_folder import RunFolder, find_run, latest_run, run_of_checkpoint
from project.runs.sweep_folder import SweepFolder, find_sweep
from project.runtime import secrets, yaml_files
from project.runtime.atomic_files import refuse_url
from project.runtime.process import command_state
from project.runtime.text import did_you_mean

MULTIRUN_FLAGS = ("-m", "--multirun")
SWEEP_FLAGS = (*MULTIRUN_FLAGS, "--config-dir", "-cd", "--config-name", "-cn")
"""Flags that a resumed sweep ignores, because its folder contains the configuration."""
OWN_KEYS = ("resume", "ckpt_path", "paths.outputs", "resume_force")
SWEEP_KEYS = ("resume", "retry_failed", "join", "paths.outputs")
SWEEP_FLAG_KEYS = ("retry_failed", "join")
FREE_KEYS = (
    *("hydra/launcher=", "hydra.launcher.", "hydra.sweeper.n_trials=", "hydra.sweeper.timeout_s="),
    *("hydra.sweeper.batch=", "hydra.sweeper.changed_code=", "hydra.sweeper.eliminate_confidence="),
    *("hydra.sweeper.order=", "hydra.sweeper.priority="),
)
"""Keys of a resumed sweep that may change: those of the launcher, limits, and the order of jobs."""
EXTENSION_KEYS = ("seeds=", "hydra.sweeper.file=", "hydra.sweeper.warm_start=")
"""Keys of the sweep that add jobs to it, or earlier results."""
KEPT_KEYS = ("seeds=", "hydra.sweeper.n_trials=")
"""Changes that later resumes keep."""


class ResumedRun(NamedTuple):
    """Earlier run that the command line resumes.

    Args:
        run: run folder.
        checkpoint: file to continue from.
        changes: overrides of the command line.
    """

    run: RunFolder
    checkpoint: Path
    changes: list[str]


class ResumedSweep(NamedTuple):
    """Earlier sweep that the command line resumes.

    Args:
        folder: folder of the sweep.
        retry: true to rerun failed jobs.
        given: overrides of the command line.
        extension: those that add jobs.
        kept: changed settings of the sweep that later resumes keep.
        join: true to run jobs of the running sweep.
    """

    folder: SweepFolder
    retry: bool
    given: list[str]
    extension: list[str]
    kept: list[str]
    join: bool


def detach_resumed(arguments: Sequence[str], defaults: Path) -> list[str]:
    """Remove the overrides of a resumed run, which Hydra would check against the current defaults.

    Args:
        arguments: arguments of the command line.
        defaults: file of the primary configuration, for the default of `paths.outputs`.

    Returns:
        The arguments for Hydra.

    Raises:
        InputError: the run or checkpoint cannot be resumed.
    """
    overrides: list[str] = parse_command_line(arguments)[0].overrides
    given = {key: value.strip("'\"") for key, _, value in (text.partition("=") for text in overrides)}
    named = {key: given[key] for key in ("resume", "ckpt_path") if given.get(key, "null") != "null"}
    of_sweeps = [f"{key}={given[key]}" for key in SWEEP_FLAG_KEYS if given.get(key, "false") != "false"]
    if not named:
        if of_sweeps:
            raise InputError(f"{of_sweeps[0]}: for sweeps only; name the sweep with resume=FOLDER")
        return list(arguments)
    request = " ".join(f"{key}={value}" for key, value in named.items())
    _refuse_invalid_paths(named)
    several = any(flag in arguments for flag in MULTIRUN_FLAGS)
    outputs = given.get("paths.outputs") or yaml_files.load(defaults).paths.outputs
    if "resume" in named and (sweep := _find_sweep(named["resume"], outputs, several)) is not None:
        flags = [text for text in arguments if text.startswith("-") and not text.startswith(SWEEP_FLAGS)]
        if flags:
            raise InputError(f"{flags[0]}: a sweep is resumed with its own options; leave this flag out")
        for text in of_sweeps:
            if not text.endswith("=true"):
                raise InputError(f"{text}: expected true or false")
        return _detach_sweep(sweep, overrides, of_sweeps)
    if several:
        preset = f"sweep={given['sweep']}" if "sweep" in given else ""
        if preset and "resume" in named:
            find_run(named["resume"], outputs)  # reports a missing folder first
        raise InputError(f"{request}: a single run, not a sweep; leave out {preset or '-m'}")
    if of_sweeps:
        raise InputError(f"{of_sweeps[0]}: for sweeps only, and {request} is a single run; leave it out")
    if "resume" in named:
        run: RunFolder | None = find_run(named["resume"], outputs)
    else:
        run = run_of_checkpoint(named["ckpt_path"])
    checkpoint = _named_checkpoint(named["ckpt_path"]) if "ckpt_path" in named else _newest(run, request)
    if (
        run is not None
        and "ckpt_path" in named
        and not checkpoint.resolve().is_relative_to(run.path.resolve())
    ):
        raise InputError(f"{request}: the checkpoint belongs to another run; give one of the two keys")
    if run is None:  # a checkpoint outside of run folders starts a new run
        return list(arguments)
    _refuse_running(run, request, anyway=given.get("resume_force") == "true")
    # An argument without = may be the value of a flag, such as `job` of --cfg, and is left to Hydra.
    single = [text for text in overrides if "=" in text or text.startswith("~")]
    changes = [
        text for text in single if text.partition("=")[0] not in OWN_KEYS and not text.startswith("hydra.")
    ]
    command_state.resumed_run = ResumedRun(run, checkpoint, changes)
    return [argument for argument in arguments if argument not in changes]


def _named_checkpoint(path: str) -> Path:
    if problem := find_damage(Path(path)):
        raise InputError(f"ckpt_path={path}: {problem}{_path_hint(Path(path))}")
    return Path(path)


def _newest(run: RunFolder | None, request: str) -> Path:
    """Return the newest undamaged checkpoint of a run, and print a line for each damaged one."""
    assert run is not None
    found = run.newest_checkpoint()
    if found.path is None:
        damaged = f"{'; '.join(found.damaged)}; " if found.damaged else ""
        raise InputError(
            f"{request}: {damaged}no checkpoint to resume from in {run.checkpoints}; start a new run"
        )
    for line in found.damaged:
        print(f"{line}: resuming from {found.path.name}", file=sys.stderr)
    return found.path


def _refuse_invalid_paths(named: Mapping[str, str]) -> None:
    """Refuse empty paths and URLs."""
    for key, value in named.items():
        if not value:
            raise InputError(f"{key}=: name a {'run folder, or last' if key == 'resume' else 'file'}")
        if line := refuse_url(key, value):
            raise InputError(line)


def _path_hint(checkpoint: Path) -> str:
    """Return a hint for a `ckpt_path` that is not a file."""
    if str(checkpoint) == "last":
        return "; write resume=last to resume the last run"
    return "; the path is a folder, give a file in it" if checkpoint.is_dir() else ""


def _find_sweep(wanted: str, outputs: str, several: bool) -> SweepFolder | None:
    """Return the sweep that `resume` names; None if it names a run."""
    if wanted != "last":
        return find_sweep(wanted)
    sweeps = [SweepFolder(file.parent) for file in Path(outputs).glob("**/sweep.json")]
    last = max(sweeps, key=lambda sweep: sweep.read_record()["started"], default=None)
    if several:
        if last is None:
            raise InputError(
                f"resume=last: no sweep below paths.outputs={outputs}; name the folder of a sweep"
            )
        return last
    if last is None:
        return None
    run = latest_run(outputs)
    if run is None or run.read_status().get("started", "") <= last.read_record()["started"]:
        return last  # a sweep that ended before its first job has no run
    return find_sweep(run.path.parent)


def _detach_sweep(sweep: SweepFolder, overrides: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Return arguments by which Hydra composes a sweep from the copy of its configuration files.

    Args:
        sweep: folder of the sweep.
        overrides: overrides of the command line.
        flags: those of `SWEEP_FLAG_KEYS` that are true.
    """
    record = sweep.read_record()
    earlier, name = record["overrides"], record.get("config_name", "train")
    given = [text for text in overrides if text.partition("=")[0] not in SWEEP_KEYS]
    earlier = secrets.restore(earlier, given)
    changes = [text for text in given if text.startswith(FREE_KEYS + EXTENSION_KEYS) and text not in earlier]
    extension = [
        text
        for text in given
        if text.startswith("hydra.sweeper.file=")  # its content may have changed
        or (text not in earlier and not text.startswith(FREE_KEYS))
    ]
    _refuse_changed_jobs(sweep, [text for text in extension if not text.startswith(EXTENSION_KEYS)], earlier)
    replaced = {text.partition("=")[0] for text in changes}
    kept = [text for text in earlier if text.partition("=")[0] not in (*replaced, *SWEEP_KEYS[:2])]
    primary = yaml_files.load(sweep.conf / f"{name}.yaml")
    beside = [text for text in kept if text.startswith(yaml_files.SEARCH_PATH)]
    if beside or OmegaConf.select(
        primary, "hydra.searchpath"
    ):  # the sweep's folder contains copies of these files
        kept = [text for text in kept if text not in beside] + [f"{yaml_files.SEARCH_PATH}[]"]
    if "hydra/launcher" in replaced:  # the new launcher has other keys
        kept = [text for text in kept if not text.startswith("hydra.launcher.")]
    for key in (text.partition("=")[0] for text in kept if secrets.is_redacted(text)):
        raise InputError(f"{key}: {secrets.NOT_RECORDED.format(key=key)}")
    persistent = [text for text in changes if text.startswith(KEPT_KEYS)]
    join, retry = "join=true" in flags, "retry_failed=true" in flags
    if join and (refused := [*extension, *persistent, *(["retry_failed=true"] if retry else [])]):
        raise InputError(f"{refused[0]}: join=true runs jobs of the sweep as it is; leave one of them out")
    command_state.resumed_sweep = ResumedSweep(sweep, retry, given, extension, persistent, join)
    place = ["-m", "--config-path", str(sweep.conf.absolute())]
    return [*place, *([] if name == "train" else ["--config-name", name]), *kept, *changes]


def _refuse_changed_jobs(sweep: SweepFolder, extension: Sequence[str], earlier: Sequence[str]) -> None:
    """Refuse overrides that would change the jobs of a sweep instead of adding some.

    A key adds jobs if it has several values, or if the sweep's jobs differ in it already.
    """
    if not extension:
        return
    parser = OverridesParser.create()
    swept = {key for job in sweep.ledger.read().values() for key in job.settings}
    for text in extension:
        override = parser.parse_override(text)
        key, value = override.key_or_group, text.partition("=")[2]
        before = next((word for word in earlier if word.lstrip("+").startswith(f"{key}=")), "")
        if override.is_hydra_override() or override.is_delete() or key == "folds":
            raise InputError(f"{text}: a resumed sweep keeps its {key}; leave this out, or start a new sweep")
        if not override.is_sweep_override() and key not in swept:
            now = before or f"{text.partition('=')[0]}=PRESENT_VALUE"
            raise InputError(
                f"{text}: would change the jobs of {sweep.shown}; to add jobs, give several values, as in "
                f"{now},{value}, or start a new sweep"
            )


def resume_restarted_run(folder: Path | None) -> None:
    """Resume the run in `folder` if it has a checkpoint and the command line names no run."""
    if (
        folder is not None
        and command_state.resumed_run is None
        and (checkpoint := (run := RunFolder(folder)).newest_checkpoint().path)
    ):
        command_state.resumed_run = ResumedRun(run, checkpoint, [])


def configure(config: DictConfig, conf: Path) -> RunFolder | None:
    """Replace a configuration by that of the resumed run, with the changes of the command line.

    Args:
        config: composed configuration with Hydra's own node, changed in place.
        conf: configuration folder.

    Returns:
        The resumed run; None for a new run.

    Raises:
        InputError: the folder is damaged, or a resumed run does not allow a change.
    """
    if command_state.resumed_run is None:
        return None
    run, checkpoint, changes = command_state.resumed_run
    earlier = _read(run, run.composed_file, "trainer")
    recorded = _read(run, run.hydra_file, "hydra")
    choices = OmegaConf.select(recorded, "hydra.runtime.choices")
    if not isinstance(choices, DictConfig):
        raise InputError(f"resume={run.shown}: {run.hydra_file} is damaged (no hydra.runtime.choices)")
    anyway = config.get("resume_force", False)
    before = OmegaConf.to_container(earlier, resolve=True) if changes else {}
    for change in changes:
        change_config(earlier, change, conf)
    if changes and not anyway:
        _refuse_wrong(before, OmegaConf.to_container(earlier, resolve=True))
    with open_dict(config):
        for key in [str(name) for name in config if name != "hydra"]:
            del config[key]
        config.merge_with(earlier)
    with open_dict(config):
        config.ckpt_path, config.resume_force = str(checkpoint), anyway
    with read_write(config.hydra), read_write(config.hydra.runtime):
        config.hydra.runtime.choices = choices
        config.hydra.output_subdir = None  # .hydra/ is rewritten only after the changes have been checked
    return run


def _read(run: RunFolder, file: Path, key: str) -> DictConfig:
    """Return a configuration file of a run, which must contain `key`."""
    try:
        found = yaml_files.load(file)
    except InputError as error:
        raise InputError(f"resume={run.shown}: {file} is damaged ({error})") from error
    if key not in found:
        raise InputError(
            f"resume={run.shown}: {file} is damaged (no key {key}); restore it, or start a new run with "
            "ckpt_path=FILE from a copy of the checkpoint outside the run folder"
        )
    plain: Any = OmegaConf.to_container(found)
    return OmegaConf.create(migrate(plain))


def _refuse_wrong(before: Any, now: Any) -> None:
    """Refuse changes that would make the results of a run invalid."""
    if lines := find_refusals(find_changes(before, now)):
        raise InputError("\n".join(lines))


def change_config(config: DictConfig, change: str, conf: Path) -> None:
    """Set one value of an earlier run's configuration.

    Args:
        config: configuration of the run, changed in place.
        change: override `key=value` of the command line.
        conf: configuration folder, searched for similar names.

    Raises:
        InputError: the key does not exist or cannot be changed.
    """
    override = OverridesParser.create().parse_override(change)
    key = override.key_or_group
    if override.is_sweep_override():
        raise InputError(f"{change}: several values; a resumed run takes one, write a list as {key}=[a,b]")
    if key == "paths.run":
        raise InputError(f"{change}: a resumed run keeps its folder; leave this out, or start a new run")
    if override.is_delete() or options(conf, key):
        raise InputError(f"{change}: a resumed run keeps its {key}; change single values, or start a new run")
    if line := explain_key(override, config, conf):
        raise InputError(line)
    if (root := key.partition(".")[0]) not in config:
        raise InputError(f"{change}: nothing reads {key}; {did_you_mean(root, map(str, config))}")
    OmegaConf.update(config, key, override.value(), force_add=override.is_add())


def _refuse_running(run: RunFolder, request: str, *, anyway: bool) -> None:
    status = run.read_status()
    if (pid := running_process(status)) is not None:
        raise InputError(f"{request}: {run.shown} is still running as process {pid}; end the process first")
    if not anyway and (host := running_host(run.path, status)):
        raise InputError(
            f"{request}: {run.shown} seems to be running on {host}; end it first, or add "
            "resume_force=true if it has ended"
        )
