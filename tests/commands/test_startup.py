"""Tests of imports at start-up. Two processes, without and with torch, serve several tests each."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from conftest import ROOT
from omegaconf import OmegaConf

from project.runtime.lazy_imports import Deferral, LazyFinder, Placeholder, is_pending, load
from project.runtime.yaml_files import Loader

HEAVY = (
    *("torch", "lightning", "torchmetrics", "torchvision", "tensorboard", "optuna", "matplotlib", "numpy"),
    *("rich", "pooch", "jinja2", "captum", "starlette"),
)
LIGHT_COMMANDS = (
    "--help",
    "--cfg job",
    "--info defaults",
    "-sc query=bash",
    "optim.lrr=1",
    "model=cnnn",
    "optim.lr=fast",
    "trainer.max_epochs=0",
    "resume=nowhere",
    "-m resume=nowhere",
    "--modle=cnn",
)
SCRIPT = ROOT / "scripts" / "train.py"

CALLING = """
import json, os, runpy, sys
from project.config import cli

def leave(code):
    raise SystemExit(code)

def call(command, script=None):
    sys.argv = [script or SCRIPT, *command.split()]
    print(f"== {command}", flush=True)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        return end.code

SCRIPT, argument = sys.argv[1], json.loads(sys.argv[2])
cli.exit_process = leave
"""
LIGHT = (
    CALLING
    + """
commands, heavy = argument
found = {command: [call(command), [name for name in heavy if name in sys.modules]] for command in commands}
sys.stderr.write(json.dumps(found) + "\\n")
"""
)


def in_process(code: str, cwd: Path, argument: object) -> tuple[dict, subprocess.CompletedProcess[str]]:
    """Run code that calls commands; return the JSON object on the last line of standard error."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(SCRIPT), json.dumps(argument)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stderr.splitlines()[-1]), done


def environment() -> dict[str, str]:
    paths = [str(ROOT / "tests" / "helpers"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "COMP_LINE": "python scripts/train.py model=",
        "COMP_POINT": "30",
    }


def test_commands_without_training_do_not_import_torch(tmp_path: Path) -> None:
    found, done = in_process(LIGHT, tmp_path, [LIGHT_COMMANDS, HEAVY])
    codes = {command: code for command, (code, _) in found.items()}
    assert codes == {command: 0 if index < 4 else 2 for index, command in enumerate(LIGHT_COMMANDS)}
    assert {command: heavy for command, (_, heavy) in found.items() if heavy} == {}
    assert "model: airbench, autoencoder, cnn, cnn_5x5," in done.stdout, "--help"
    assert "model=resnet" in done.stdout.partition("== -sc")[2], "completion"
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(LIGHT_COMMANDS) - 4
    for line in (
        "optim.lrr=1: no key optim.lrr; did you mean optim.lr?",
        "model=cnnn: no such option; did you mean cnn?",
        "optim.lr=fast: expected a number, got 'fast'; for example optim.lr=0.001",
        "resume=nowhere: no run folder",
        "--modle=cnn: no such flag",
    ):
        assert [error for error in errors if error.startswith(f"error: {line}")], errors
    assert list(tmp_path.iterdir()) == []


OTHERS = {
    "evaluate": ("run=nowhere", "rnu=x", "run=run weights=bst", "run=run data=minst", "run=run data.noize=1"),
    "predict": ("run=nowhere input=run", "inptu=x", "run=run input=nowhere", "run=run input=run weights=bst"),
    "serve": ("run=nowhere", "rnu=x", "run=run weights=bst", "run=run port=99999"),
    "export": ("run=nowhere", "formt=onnx", "run=run weights=bst", "run=run data=minst", "run=damaged"),
    "report": ("run=nowhere", "rnu=x", "run=run compare=nowhere"),
    "replay": ("run=nowhere", "rnu=x", "run=run"),
    "compare": ("nowhere", "bi=x", "run by=test/accc"),
    "runs": ("nowhere", "run sort=acccc", "run stte=done", "run top=x"),
    "watch": ("run=nowhere", "rnu=x"),
    "data": ("run=nowhere", "dta=x", "data=minst", "data=digits data.noize=1", "data=image_folder"),
}
OTHERS_LIGHT = (
    CALLING
    + """
commands, heavy = argument
found = {}
for name, lines in commands.items():
    for line in lines:
        script = os.path.join(os.path.dirname(SCRIPT), name + ".py")
        found[name + " " + line] = [call(line, script), [one for one in heavy if one in sys.modules]]
sys.stderr.write(json.dumps(found) + "\\n")
"""
)
RUN_CONFIG = """
model: {_target_: project.modules.networks.mlp.MLP}
data: {_target_: project.datamodules.synthetic.Synthetic, input_shape: [1, 8, 8], num_classes: 10, noise: 1.0}
loss: {_target_: project.modules.losses.CrossEntropy}
optim: {_target_: torch.optim.SGD}
scheduler: {_target_: project.modules.optim.schedules.constant}
trainer: {_target_: project.training.trainer.Trainer, accelerator: cpu}
"""


def test_wrong_input_of_later_commands_does_not_import_torch(tmp_path: Path) -> None:
    for file, text in (
        ("run/config.yaml", RUN_CONFIG),
        ("run/.hydra/config.yaml", RUN_CONFIG),
        ("run/status.json", '{"state": "done", "metrics": {"test/acc": 0.5}}'),
        ("run/checkpoints/best.ckpt", ""),
        ("damaged/config.yaml", "model: {\n"),
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    found, done = in_process(OTHERS_LIGHT, tmp_path, [OTHERS, HEAVY])
    assert len(found) == sum(map(len, OTHERS.values()))
    assert {command: result for command, result in found.items() if result != [2, []]} == {}
    errors = done.stderr.splitlines()[:-1]
    assert len(errors) == len(found)
    for says in (
        *(
            "weights=bst: no such file; did you mean best?",
            "data=minst: no such data set; did you mean mnist or kmnist or emnist?",
        ),
        *("rnu=x: no key rnu; did you mean run?", "no key data.noize; did you mean data.noise?"),
        *("run=nowhere: no such folder", "damaged/config.yaml:2: ", "no such metric"),
    ):
        assert any(says in line for line in errors), says


RUN = (
    CALLING
    + """
found = {"code": call(argument + " +callbacks.probe._target_=probe_callback.Probe")}
found["after"] = [name for name in ("matplotlib", "rich", "jinja2", "pooch") if name in sys.modules]
import lightning, torch
from lightning.fabric.wrappers import OptimizedModule, _unwrap_compiled
from project.runtime.lazy_imports import is_pending
from probe_callback import Probe

network = torch.nn.Linear(3, 2)
optimizer = torch.optim.Adam(network.parameters())

def train():
    network(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()

train()
torch.use_deterministic_algorithms(True)  # an option of a pending module
found |= Probe.found | {
    "plain": isinstance(network, OptimizedModule),
    "waited": is_pending(sys.modules["torch._dynamo"]) and is_pending(sys.modules["torch._inductor.config"]),
}
compiled = torch.compile(network, backend="eager")
found["compiled"] = isinstance(compiled, OptimizedModule)
found["unwrapped"] = _unwrap_compiled(compiled)[0] is network
torch.compile(train, backend="eager")()
from torch._dynamo.utils import counters
found["breaks"] = [reason.splitlines()[0] for reason in counters["graph_break"]]
found["deterministic"] = torch._inductor.config.deterministic
from torchmetrics.classification import MulticlassAccuracy
from lightning.pytorch.callbacks import RichProgressBar
bar = RichProgressBar()
from lightning.pytorch.callbacks.progress import rich_progress
import lightning.pytorch.callbacks
found["bar"] = type(bar) is rich_progress.RichProgressBar is lightning.pytorch.callbacks.RichProgressBar
found["accuracy"] = float(MulticlassAccuracy(3)(torch.eye(3), torch.arange(3)))
sys.stderr.write("\\n" + json.dumps(found) + "\\n")
sys.stderr.flush()
os._exit(0)
"""
)


@pytest.fixture(scope="module")
def after_a_run(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Return facts of one process: a run on the digits, then uses of modules that the run did not load."""
    argument = "model=mlp trainer.max_epochs=1 trainer.limit_train_batches=2 trainer.accelerator=cpu"
    found, _ = in_process(RUN, tmp_path_factory.mktemp("run"), argument)
    assert found["code"] == 0
    return found


def test_run_imports_only_what_it_needs(after_a_run: dict) -> None:
    assert after_a_run["imported"] == []
    assert after_a_run["after"] == [], "the run's images are drawn by Pillow"
    assert after_a_run["waited"]


def test_gc_is_enabled_and_imports_are_frozen_in_training(after_a_run: dict) -> None:
    assert after_a_run["collecting"]
    assert after_a_run["frozen"]


def test_lazy_modules_work_after_loading(after_a_run: dict) -> None:
    assert not after_a_run["plain"]
    assert after_a_run["compiled"]
    assert after_a_run["unwrapped"]
    assert after_a_run["deterministic"]
    assert after_a_run["accuracy"] == 1.0
    assert after_a_run["bar"]
    # Graph breaks of the optimizer and of methods that are excluded from compilation.
    assert any("graph_break()" in reason for reason in after_a_run["breaks"])


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Create a lazy package that counts its imports and imports a submodule."""
    folder = tmp_path / "late_package"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "import sys\n"
        "sys.late_runs = getattr(sys, 'late_runs', 0) + 1\n"
        "if getattr(sys, 'late_failure', False): raise ImportError('not today')\n"
        "early = 2\n"
        "from late_package.inner import number\n"
        "from late_package import light\n"
        "class Thing:\n"
        "    size = 3\n"
        "option = False\n"
    )
    (folder / "inner.py").write_text("import late_package\nnumber = 7\nmarks = []\n")
    (folder / "light.py").write_text("import late_package\nanswer = late_package.early\n")
    deferral = Deferral(
        lambda: [("Thing", Placeholder("late_package", "Thing")), ("early", 1)], frozenset({"light"})
    )
    monkeypatch.setattr(sys, "meta_path", [LazyFinder({"late_package": deferral}), *sys.meta_path])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "late_runs", 0, raising=False)
    yield "late_package"
    for name in [name for name in sys.modules if name.startswith("late_package")]:
        del sys.modules[name]


def runs() -> int:
    return sys.late_runs  # type: ignore[attr-defined]


def test_lazy_module_is_loaded_once_on_first_access(package: str) -> None:
    module = import_module(package)
    assert module.early == 1
    assert import_module(f"{package}.light").answer == 1
    assert not hasattr(module, "__warningregistry__")
    assert (is_pending(module), runs()) == (True, 0)
    module.option = True
    assert is_pending(module)
    assert module.number == 7
    assert (is_pending(module), runs(), type(module)) == (False, 1, ModuleType)
    assert module.option, "earlier assignments are kept"
    assert module.early == 2
    load(module)
    assert runs() == 1


def test_submodule_loads_its_package_first(package: str) -> None:
    module = import_module(package)
    inner = import_module(f"{package}.inner")
    assert runs() == 1
    assert inner is module.inner is sys.modules[f"{package}.inner"]
    assert inner.__spec__.name == f"{package}.inner"
    assert inner.__spec__.loader is inner.__loader__


def test_failed_lazy_module_can_be_loaded_again(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module(package)
    monkeypatch.setattr(sys, "late_failure", True, raising=False)
    with pytest.raises(ImportError, match="not today"):
        _ = module.number
    assert (is_pending(module), module.early) == (True, 1)
    monkeypatch.setattr(sys, "late_failure", False)
    assert (module.number, runs()) == (7, 2)


def test_placeholder_behaves_like_its_class(package: str) -> None:
    early: Any = import_module(package).Thing
    assert isinstance(early, Placeholder)
    assert not isinstance(3, early)
    assert runs() == 0
    thing = early()
    assert runs() == 1
    real = import_module(package).Thing
    assert type(thing) is real
    assert isinstance(thing, early)
    assert issubclass(real, early)
    assert early.size == 3

    class Other(early):
        def __init__(self) -> None:
            super().__init__()

    assert Other.__mro__[1] is real
    assert isinstance(Other(), early)


def test_libyaml_loader_equals_omegaconf(tmp_path: Path) -> None:
    text = (
        "a: 1e-3\nb: 1_000\nc: [on, off, 'on', ~, null]\nd: 2026-01-31\ne: .inf\nf: ${a}\ng: {h: 1e5}\n"
        "i: 0x10\nj: |\n  lines\n  of text\nk: *x\n".replace("k: *x\n", "k: &x [1.5]\nl: *x\n")
    )
    plain = OmegaConf.to_container(OmegaConf.create(text))
    fast = yaml.load(text, Loader)  # noqa: S506
    assert fast == plain
    assert fast["a"] == 0.001
    assert fast["d"] == "2026-01-31"
    with pytest.raises(yaml.YAMLError, match="duplicate key a"):
        yaml.load("a: 1\na: 2\n", Loader)  # noqa: S506
    assert issubclass(Loader, yaml.cyaml.CParser)
