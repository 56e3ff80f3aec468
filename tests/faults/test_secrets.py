"""Secrets of runs and sweeps are used, never written, and required again when resuming."""

import os
import sys
from pathlib import Path

import pytest
from hostile_commands import command
from hostile_inputs import Seen, try_out
from hostile_payload import Case

LITERAL, PASSED = "literal-sesame", "passed-sesame"
TINY = (
    "model=mlp  data=synthetic  data.train_size=200  data.test_size=100  trainer.accelerator=cpu  "
    "trainer.max_epochs=1"
)
KEYED = "+callbacks.keyed={_target_:keyed.Keyed,api_key:%s,login:'u:${oc.env:SOME_TOKEN}',seen:'{here}/seen'}"
MODULE = """
import logging

from lightning.pytorch.callbacks import Callback

CONFIG_TARGETS = ("Keyed",)


class Keyed(Callback):
    def __init__(self, api_key, login, seen):
        open(seen, "a").write(f"{api_key} {login}\\n")
        logging.getLogger("project").info("logged in with %s as %s", api_key, login)
"""


def call(root: Path, name: str, text: str) -> Seen:
    """Run a command in a new process, always in the same folder."""
    (root / "modules").mkdir(exist_ok=True)
    (root / "modules" / "keyed.py").write_text(MODULE)

    def attempt(here: Path, mark: Path) -> int | None:
        os.chdir(root)
        sys.path.append(str(root / "modules"))
        return command(text.replace("{here}", str(root)), SOME_TOKEN=PASSED)(here, mark)

    return try_out(Case(name, attempt), root / "calls")


@pytest.mark.parametrize("swept", [False, True], ids=["run", "sweep"])
def test_secrets_are_used_and_written_nowhere(tmp_path: Path, swept: bool) -> None:
    sweep = "-m  seed=1,2  hydra.launcher.jobs=1  " if swept else ""
    seen = call(tmp_path, "first", f"{sweep}{TINY}  {KEYED % LITERAL}")
    assert seen.code == 0, seen.output
    assert set((tmp_path / "seen").read_text().splitlines()) == {f"{LITERAL} u:{PASSED}"}
    files = {file: file.read_bytes() for file in tmp_path.glob("outputs/**/*") if file.is_file()}
    assert any(file.name == "last.ckpt" for file in files)
    for secret in (PASSED.encode(), LITERAL.encode()):
        assert [str(file) for file, content in files.items() if secret in content] == []
        assert secret not in seen.output.encode()
    assert any(b"${oc.env:SOME_TOKEN}" in content for content in files.values())
    if swept:  # one job must run again
        ledger = next(file for file in files if file.name == "jobs.jsonl")
        ledger.write_bytes(files[ledger] + files[ledger].splitlines(keepends=True)[0])
        status = next(file for file in files if file.name == "status.json")
        status.unlink()
    again = "hydra.launcher.jobs=1" if swept else "trainer.max_epochs=2"
    refused = call(tmp_path, "again", f"resume=last  {again}")
    assert refused.code == 2, refused.output
    assert "callbacks.keyed" in refused.output
    assert "set it again" in refused.output
    key = KEYED % LITERAL if swept else f"callbacks.keyed.api_key={LITERAL}"
    resumed = call(tmp_path, "given", f"resume=last  {again}  {key}")
    assert resumed.code == 0, resumed.output
    assert LITERAL not in resumed.output
