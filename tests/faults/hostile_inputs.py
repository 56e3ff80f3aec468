"""Inputs with malicious code: configurations, checkpoints, data files, archives, options.

Each input contains a payload that would write a file. No payload may run, and each input must be refused.
"""

import contextlib
import gc
import os
import pickle
import re
import shutil
import signal
import sys
import tarfile
import tempfile
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from exit_kinds import wait_for_end
from hostile_commands import heavy_commands, light_commands
from hostile_files import entries, files
from hostile_payload import MARK, PAYLOAD, Case, write_pickle
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

LIMIT_S = 300


@dataclass
class Seen:
    """Outcome of a case."""

    name: str
    code: int
    ran: bool
    output: str
    left: list[str] = field(default_factory=list)


def cases(*, heavy: bool) -> list[Case]:
    """Return all cases; without `heavy`, those that are refused without importing torch."""
    return [case for case in (*light_commands(), *files(), *heavy_commands()) if heavy or not case.heavy]


def try_out(case: Case, root: Path) -> Seen:
    """Try a case in a fork of this process."""
    here = root / re.sub(r"\W+", "-", case.name)
    here.mkdir(parents=True)
    mark, log = here / MARK, here / "output"
    sys.stdout.flush()
    sys.stderr.flush()
    if not (pid := os.fork()):
        code = 99
        gc.freeze()  # a collection would copy all memory of the parent
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
            for standard in (1, 2):
                os.dup2(descriptor, standard)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            GlobalHydra.instance().clear()
            HydraConfig.instance().cfg = None
            os.chdir(here)
            os.environ["MARKED"] = str(mark)
            if hasattr(os, "sched_setaffinity"):  # one core, as OpenMP's threads
                os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])  # do not survive a fork
            code = case.attempt(here, mark) or 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 98
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    code = wait_for_end(pid, LIMIT_S)
    code = -signal.SIGKILL if code is None else code
    left = [str(path.relative_to(here)) for path in here.glob("outputs/**/*") if path.is_file()]
    return Seen(case.name, code, mark.exists(), log.read_text(errors="replace"), left)


def problem_of(case: Case, seen: Seen) -> str:
    """Return what was wrong with a case; an empty string for nothing."""
    if seen.ran:
        return "the payload ran"
    if seen.code not in case.codes:
        return f"exit code {seen.code}"
    if "Traceback" in seen.output:
        return "a traceback"
    if "error: " not in seen.output or case.says not in seen.output:
        return f"no line that tells why: {case.says}"
    return f"left {seen.left}" if seen.left else ""


def controls(root: Path) -> list[str]:
    """Check that payloads run when nothing refuses them; otherwise the test would prove nothing."""

    def called(here: Path, mark: Path) -> int:
        (here / "payload.py").write_text(PAYLOAD)
        sys.path.append(str(here))
        import payload

        payload.run()
        return 0

    def unpickled(here: Path, mark: Path) -> int:
        write_pickle(here / "evil", mark)
        pickle.loads((here / "evil").read_bytes())  # noqa: S301
        return 0

    def extracted(here: Path, mark: Path) -> int:
        with tarfile.open(here / "set.tar", "w") as tar:
            entries()["a path upwards"](tar, mark)
        (here / "into").mkdir()
        with tarfile.open(here / "set.tar") as tar:
            tar.extractall(here / "into", filter="fully_trusted")  # noqa: S202
        return 0

    made = [Case(f"control: {name}", attempt) for name, attempt in
            (("called", called), ("unpickled", unpickled), ("extracted", extracted))]  # fmt: skip
    return [case.name for case in made if not try_out(case, root).ran]


def trial(*, heavy: bool) -> str:
    """Try all cases, and return their number.

    Raises:
        AssertionError: a payload ran, or an input was not refused as expected.
    """
    root = Path(tempfile.mkdtemp(prefix="hostile-"))
    try:
        assert controls(root) == [], "payloads that do nothing"
        tried = cases(heavy=heavy)
        problems = []
        for case in tried:
            seen = try_out(case, root)
            if problem := problem_of(case, seen):
                problems.append(f"{case.name}: {problem}\n{seen.output[-1500:]}")
        assert not problems, f"{len(problems)} of {len(tried)}:\n" + "\n".join(problems)
        return f"{len(tried)} hostile inputs: 0 payloads run, all refused"
    finally:
        shutil.rmtree(root, ignore_errors=True)


def full() -> str:
    """Try all cases, including those that torch refuses."""
    from project.runtime import lazy_imports

    lazy_imports.defer_imports()
    import project.train  # noqa: F401  (imported once for all forks)

    return trial(heavy=True)


if __name__ == "__main__":
    print(full())
