"""Run a script: report wrong input on one line and other errors with a traceback, and set the exit code."""

import atexit
import errno
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import OmegaConfBaseException

from project.config import hydra_patches, hydra_security, resume
from project.config.resolvers import register_resolvers
from project.config.suggestions import explain_composition, options
from project.config.validation.command_request import last_of_each, refuse_wrong_arguments
from project.errors import InputError, one_line, strip_library_text
from project.runs import folders
from project.runs.run_folder import RunFolder
from project.runs.sweep_folder import SweepFolder
from project.runs.sweep_jobs import quote_override
from project.runtime import lazy_imports, signals, slurm, torchrun
from project.runtime.atomic_files import reason_of
from project.runtime.console import error_block
from project.runtime.process import command_state, escape_unencodable, flush_streams
from project.runtime.secrets import redact_text
from project.runtime.text import MAX_NAME_BYTES, name_length

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""System errors that are reported without a traceback."""
TRACEBACK_FLAG = "--traceback"
HELP_FLAGS = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i"}
"""Flags that print text instead of training."""
FROM_HOME = re.compile(r"([^=~][^=]*=)(['\"]?)(~[^,'\"]*)\2")


def run(main: Callable[..., object], conf: Path, config_name: str) -> None:
    """Run a Hydra main function as a script and end the process with its exit code.

    Exit codes: 0 success; 1 failure; 2 wrong input, reported on one line of standard error (and with its
    traceback after `--traceback`); 75, 129, 130, 143 stopped by a signal (see `runtime.signals`).

    Args:
        main: function that takes the composed configuration.
        conf: configuration folder.
        config_name: name of the primary configuration.
    """
    signals.exit_on_signal(_remove_unused_folders)
    if hasattr(signal, "SIGPIPE") and HELP_FLAGS & set(sys.argv):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # no error after `--help | head`
    escape_unencodable()
    command_state.shows_traceback = TRACEBACK_FLAG in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != TRACEBACK_FLAG]
    register_resolvers()
    hydra_patches.compose_faster()
    hydra_patches.format_help()
    hydra_security.install()
    lazy_imports.defer_imports()
    decorated = hydra.main(config_path=str(conf), config_name=config_name, **hydra_patches.VERSION_BASE)(main)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises errors instead of printing them and exiting with 1
    try:
        with torchrun.share_exit_code(), exit_on_errors(conf, config_name):
            require_working_folder()
            torchrun.set_variables_from_slurm()
            if torchrun.is_rank_zero():
                sys.argv[1:] = with_multirun_flag(list(map(with_home, sys.argv[1:])))
                sys.argv[1:], notes = last_of_each(sys.argv[1:], conf / f"{config_name}.yaml")
                refuse_wrong_arguments(sys.argv[1:])
                for note in notes:
                    print(redact_text(f"note: {note}"), file=sys.stderr)
                _refuse_hidden_files(conf)
                _refuse_wrong_groups(conf)
                sys.argv[1:] = resume.detach_resumed(_flags_first(sys.argv[1:]), conf / f"{config_name}.yaml")
                with hydra_patches.allowing(hydra_security.BUILT_BY_HYDRA):
                    decorated()
            else:
                decorated(torchrun.receive_config())
    except SystemExit as end:
        exit_process(end.code)
    exit_process(0)


def require_working_folder() -> None:
    """Refuse to start if the working directory does not exist: libraries need it.

    Raises:
        InputError: the working directory was removed.
    """
    try:
        Path.cwd()
    except OSError as error:
        raise InputError(
            f"the working directory does not exist ({reason_of(error)}); change to another"
        ) from error


def _remove_unused_folders(signum: int) -> None:
    """Remove the folders of a run that a signal stops before training, and requeue its SLURM job."""
    mine = list(folders.created_folders())
    for path in mine:
        if not RunFolder(path).status_file.exists() and not SweepFolder(path).ledger.file.exists():
            folders.discard(path)
    if signum == signal.SIGUSR1 and (mine or command_state.resumed_run) and torchrun.is_rank_zero():
        slurm.requeue()


def exit_process(code: str | int | None) -> NoReturn:
    """End the process without the cleanup of the interpreter, which takes a second with torch.

    Args:
        code: exit code or message, as for `sys.exit`.
    """
    if isinstance(code, str):
        print(code, file=sys.stderr)
    # Waits for threads, as thread pools of other launchers require.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    lost = flush_streams() or command_state.lost_output
    if not code and lost is not None and not isinstance(lost, BrokenPipeError):
        code = report(lost)  # only now, so that the command has done its work
    os._exit(code if isinstance(code, int) else 1 if code else 0)


def end_with(work: Callable[[], int | None]) -> NoReturn:
    """Run a command and end the process with its exit code; None is 0."""
    code: int | None = 1
    try:
        with exit_on_errors():
            require_working_folder()
            code = work()
    except SystemExit as end:
        exit_process(end.code)
    exit_process(code)


@contextmanager
def exit_on_errors(conf: Path | None = None, config_name: str = "train") -> Iterator[None]:
    """Report an error and end the process with its exit code.

    Args:
        conf: configuration folder, searched for similar names.
        config_name: name of the primary configuration.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except signals.Stopped as stopped:
        if not stopped.logged:
            print(stopped, file=sys.stderr)
            stopped.logged = True
        raise
    except Exception as error:
        silent = isinstance(error, InputError) and torchrun.is_reported_elsewhere()
        raise SystemExit(report(error, conf, config_name, silent=silent)) from error


def report(
    error: BaseException, conf: Path | None = None, config_name: str = "train", *, silent: bool = False
) -> int:
    """Print an error on standard error: a line for each wrong input, a traceback for other errors.

    Args:
        error: exception.
        conf: configuration folder, searched for similar names.
        config_name: name of the primary configuration.
        silent: print nothing.

    Returns:
        The exit code of the process.
    """
    lines = _explain(error, conf, config_name)
    if not silent:
        if not lines or command_state.shows_traceback:
            print(
                redact_text(strip_library_text("".join(traceback.format_exception(error)))),
                end="",
                file=sys.stderr,
            )
        for line in lines:
            with suppress(OSError):  # standard error itself is closed
                print(error_block(redact_text(line)), file=sys.stderr, flush=True)
    mistake = lines and (
        not isinstance(error, OSError)
        or isinstance(error, HydraException)  # some exceptions are both
        or error.errno == errno.ENAMETOOLONG
    )
    return getattr(error, "exit_code", InputError.exit_code if mistake else 1)


def _explain(error: BaseException, conf: Path | None, config_name: str) -> list[str]:
    """Return a line for each wrong input; empty if the error has another cause."""
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, InputError):
        error = error.__cause__
    if isinstance(error, InputError):
        return str(error).splitlines()
    if hasattr(error, "exit_code"):
        return [one_line(error)]
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return [
            f"{error.filename or 'standard output'}: {reason_of(error)}; free disk space, or write elsewhere"
        ]
    if isinstance(error, BrokenPipeError):
        return ["standard output: the reading process has ended"]
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return [_explain_long_name(str(error.filename))]
    if isinstance(error, HydraException | OmegaConfBaseException):
        overrides = hydra_patches.parse_command_line(sys.argv[1:])[0].overrides
        return explain_composition(error, overrides, conf, config_name)
    return []


def _explain_long_name(path: str) -> str:
    """Return a line about the argument that makes a path too long for the file system."""
    length, most = name_length(path), MAX_NAME_BYTES
    given = next((word for word in sys.argv[1:] if (word.partition("=")[2] or word) in path), path)
    if length <= most:
        return f"{given}: the path is too long ({len(os.fsencode(path)):,} bytes); shorten it"
    return f"{given}: the name is too long (at most {most} bytes, got {length}); shorten it"


def _refuse_wrong_groups(conf: Path) -> None:
    for argument in sys.argv[1:]:
        group, _, option = argument.partition("=")
        if (
            option in ("null", "''", '""')
            and group not in ("experiment", "sweep", "debug")
            and (known := options(conf, group))
        ):
            raise InputError(f"{argument}: a run needs it; choose from {', '.join(known)}")
        if options(conf, group) and _names_no_option(argument):
            raise InputError(f"{argument}: no such option; choose from {', '.join(options(conf, group))}")


def _refuse_hidden_files(conf: Path) -> None:
    """Refuse files of `--config-dir` that Hydra does not read: it finds other files of these names first."""
    given = hydra_patches.parse_command_line(sys.argv[1:])[0].config_dir
    for file in sorted(conf.rglob("*.yaml")) if given else ():
        name = file.relative_to(conf)
        own = Path(given) / name
        if own.is_file() and own.read_bytes() != file.read_bytes():
            raise InputError(
                f"{own}: not read, {name.as_posix()} of this project is found first; rename the file, and "
                "choose it by its new name"
            )


def _names_no_option(argument: str) -> bool:
    """Return True for an option that is a number or boolean, for which Hydra has no message."""
    with suppress(HydraException):
        value = OverridesParser.create().parse_override(argument).value()
        return any(
            isinstance(one, bool | int | float) or (one is None and isinstance(value, list))
            for one in (value if isinstance(value, list) else [value])
        )
    return False  # Hydra reports the mistake later


def with_multirun_flag(arguments: Sequence[str]) -> list[str]:
    """Return the arguments, with `-m` added for `sweep=…` and `hydra.mode=MULTIRUN`."""
    plain = [text for text in arguments if text != "hydra.mode=MULTIRUN"]
    sweeps = [text for text in plain if text.lstrip("+").startswith("sweep=")]
    wanted = len(plain) < len(arguments) or (sweeps and sweeps[-1].partition("=")[2] not in ("", "null"))
    flags = hydra_patches.parse_command_line(plain)[0]
    has_flag = flags.multirun or flags.run or flags.cfg or flags.info or flags.shell_completion
    return ["-m", *plain] if wanted and not has_flag else plain


def with_home(argument: str) -> str:
    """Return an override with `~` at the start of its value expanded, which shells do not do."""
    if (found := FROM_HOME.fullmatch(argument)) is None:
        return argument
    try:
        return f"{found[1]}{quote_override(str(Path(found[3]).expanduser()))}"
    except RuntimeError:  # no such user
        return argument


def _flags_first(arguments: list[str]) -> list[str]:
    """Return the arguments with flags first, because Hydra's parser rejects overrides between flags."""
    overrides = hydra_patches.parse_command_line(arguments)[0].overrides
    flags = list(arguments)
    for override in overrides:
        flags.remove(override)
    return [*flags, *overrides]
