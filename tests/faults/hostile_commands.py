"""Malicious command lines, presets and files named on the command line."""

import os
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hostile_payload import MARK, PAYLOAD, Attempt, Case, write_pickle, write_torch

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train.py"


def command(arguments: str | Callable[[Path], Sequence[str]], **variables: str) -> Attempt:
    """Attack by a command line; {mark} stands for the payload's file, {here} for the working folder."""

    def attempt(here: Path, mark: Path) -> int:
        given = arguments(here) if callable(arguments) else arguments.split("  ")
        (here / "elsewhere").mkdir(exist_ok=True)
        (here / "elsewhere" / "payload.py").write_text(PAYLOAD)
        sys.path.append(str(here / "elsewhere"))
        os.environ |= {name: value.replace("{here}", str(here)) for name, value in variables.items()}
        sys.argv = [
            str(SCRIPT),
            *(text.replace("{mark}", str(mark)).replace("{here}", str(here)) for text in given),
        ]
        from project.config import cli

        def leave(code: str | int | None) -> None:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 0 if code is None else 1)

        cli.exit_process = leave  # type: ignore[assignment]
        runpy.run_path(str(SCRIPT), run_name="__main__")
        raise AssertionError("unreachable")

    return attempt


def preset(text: str, *arguments: str, heavy: Sequence[str] = (), **variables: str) -> Attempt:
    """Attack by a preset: `experiment=evil` in a folder of --config-dir."""

    def files(here: Path) -> Sequence[str]:
        folder = here / "conf" / "experiment"
        folder.mkdir(parents=True, exist_ok=True)
        filled = text.replace("{here}", str(here)).replace("{mark}", str(here / MARK))
        (folder / "evil.yaml").write_text(f"# @package _global_\n{filled}\n")
        return ["--config-dir", str(here / "conf"), "experiment=evil", *heavy, *arguments]

    return command(files, **variables)


def an_option(path: str, text: str, *arguments: str) -> Attempt:
    """Attack by an option of a group in a folder of --config-dir."""

    def files(here: Path) -> Sequence[str]:
        file = here / "conf" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return ["--config-dir", str(here / "conf"), *arguments]

    return command(files)


def with_file(name: str, write: Callable[[Path, Path], object], arguments: str, **variables: str) -> Attempt:
    """Attack by a file named on the command line."""

    def attempt(here: Path, mark: Path) -> int:
        file = here / name
        file.parent.mkdir(parents=True, exist_ok=True)
        write(file, mark)
        return command(arguments, **variables)(here, mark)

    return attempt


def write_run(folder: Path, mark: Path) -> None:
    """Write a run folder whose configuration names a payload."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    write_pickle(folder / "checkpoints" / "last.ckpt", mark)
    (folder / ".hydra" / "hydra.yaml").write_text("hydra: {runtime: {choices: {model: mlp}}}\n")
    (folder / ".hydra" / "config.yaml").write_text(
        "".join(f"{group}: {{}}\n" for group in ("data", "augment", "optim", "loss", "trainer", "scheduler"))
        + "model: {_target_: payload.run}\ncallbacks: {}\nlogger: {}\npaths: {}\nckpt_path: null\n"
    )


def write_cached_weights(file: Path, mark: Path) -> None:
    """Write weights where torchvision caches downloads, whose checksums it does not check again."""
    folder = file / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    write_pickle(folder / "squeezenet1_1-b8a52dc0.pth", mark)


def light_commands() -> Iterator[Case]:
    """Return the attacks that are refused without importing torch."""
    inline = {
        "a command of the shell": _callback("os.system,command:'touch {mark}'"),
        "a process": _callback("subprocess.Popen,args:[touch,'{mark}']"),
        "builtins": _callback("builtins.open,file:'{mark}',mode:w"),
        "a method": _callback("pathlib.Path.touch,self:'{mark}'"),
        "any function on the path": _callback("payload.run"),
        "torch.load": _callback("torch.load,f:'{here}/evil.pt',weights_only:false"),
        "torch.hub": _callback("torch.hub.load,repo_or_dir:'{here}',model:run,source:local"),
        "an alias in Lightning": _callback("lightning.pytorch.trainer.trainer.os.remove,path:'{here}'"),
        "an alias in torch.nn": _part("torch.nn.modules.module.torch.load,f:'{here}/evil.pt'"),
        "an alias in torchvision": _part("torchvision.models.resnet.load_state_dict_from_url,url:'http://1'"),
        "an alias in this package": _part("project.train.instantiate,config:{a:{_target_:payload.run}}"),
        "a module of this package": _part("project.datamodules.cifar10.pickle.loads,data:''"),
        "a class's method": _callback("lightning.LightningModule.load_from_checkpoint,hparams_file:x"),
        "Lightning's command line": "+trainer.x={_target_:lightning.pytorch.cli.LightningCLI}",
        "in a list, partially": "+model.x=[[{_target_:payload.run,_partial_:true}]]",
        "as an argument by place": "+optim._args_=[{_target_:payload.run}]",
        "Hydra's callback": "+hydra.callbacks.x._target_=payload.run",
        "Hydra's launcher": "-m  hydra.launcher._target_=payload.Launcher  seed=1,2",
        "below Hydra's launcher": "-m  +hydra.launcher.x={_target_:payload.run}  seed=1,2",
        "a swept target": "-m  optim._target_=torch.optim.Adam,payload.run",
        "a swept callback of Hydra": "-m  +hydra.callbacks.x._target_=payload.run  seed=1,2",
        "a handler of logs": "hydra.job_logging.handlers.screen.class=payload.Handler",
        "a stream of logs": "hydra.job_logging.handlers.screen.stream=ext://payload.run",
        "a variable of the loader": "+hydra.job.env_set.LD_PRELOAD={here}/evil.so",
        "a variable of Python": "+hydra.job.env_set.PYTHONPATH={here}",
        "a variable that switches checks off": "+hydra.job.env_set.TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD='1'",
        "the allow-list by a key": f"+CONFIG_TARGETS=[payload.run]  {_callback('payload.run')}",
        "an address as a checkpoint": "ckpt_path=http://127.0.0.1:1/evil.ckpt",
        "an address of a file as a checkpoint": "ckpt_path=file://{here}/evil.ckpt",
        "an address as a run": "resume=https://127.0.0.1:1/run",
        "an address as weights": "model=torchvision  model.weights=http://127.0.0.1:1/evil.pth",
        "lines of shell before a job": "-m  hydra/launcher=slurm  "
        "trainer.accelerator=cpu  hydra.launcher.setup=['touch {mark}']  seed=1,2",
    }
    for name, text in inline.items():
        yield Case(name, command(text))
    yield Case(
        "Hydra's switch in the environment",
        command(
            inline["a command of the shell"],
            HYDRA_INSTANTIATE_ALLOWLIST_OVERRIDE="os.system:payload.run",
        ),
    )
    yield Case("a package to search", command("hydra.searchpath=[pkg://payload]", ON_IMPORT="1"))
    yield Case("through an interpolation", preset("x: {_target_: payload.run}\ncallbacks: {x: '${x}'}"))
    yield Case(
        "a name from the environment",
        preset("callbacks: {x: {_target_: '${oc.env:EVIL}'}}", EVIL="payload.run"),
    )
    yield Case(
        "a node that is computed", preset("callbacks: {x: \"${oc.create:'{_target_: payload.run}'}\"}")
    )
    yield Case(
        "a node that is computed later",
        preset("callbacks: {x: \"\\\\${oc.create:'{_target_: payload.run}'}\"}"),
    )
    yield Case("a decoded node", preset("callbacks: {x: '${oc.decode:\"{_target_:payload.run}\"}'}"))
    yield Case("a preset's checkpoint", preset("ckpt_path: http://127.0.0.1:1/evil.ckpt"))
    yield Case("a preset's callback of Hydra", preset("hydra: {callbacks: {x: {_target_: payload.run}}}"))
    factory = "{version: 1, root: {handlers: [x]}, handlers: {x: {(): payload.run}}}"
    yield Case("a factory of log handlers", preset(f"hydra: {{job_logging: {factory}}}"))
    yield Case(
        "a factory of Hydra's log handlers", preset(f"hydra: {{hydra_logging: {factory}}}", "-m", "seed=1,2")
    )
    yield Case(
        "the same while asking for help", preset(f"hydra: {{hydra_logging: {factory}}}", "--hydra-help")
    )
    yield Case(
        "a network of somebody else", an_option("model/evil.yaml", "_target_: payload.run\n", "model=evil")
    )
    yield Case(
        "a line of a sweep's file",
        with_file(
            "points.txt",
            lambda file, _: file.write_text("seed=1\n+hydra.callbacks.x._target_=payload.run\n"),
            "-m  hydra.sweeper.file={here}/points.txt",
        ),
    )
    yield Case("a run folder", with_file("run", write_run, "resume={here}/run"))
    yield Case("a line break in a setting of sbatch", _sbatch)


def heavy_commands() -> Iterator[Case]:
    """Return the attacks that are refused when a file is read."""
    tiny = "model=mlp  data=synthetic  data.train_size=200  trainer.accelerator=cpu  logger=none"
    for name, write in (("pickle", write_pickle), ("torch's format", write_torch)):
        yield Case(
            f"a checkpoint in {name}",
            with_file("evil.ckpt", write, f"{tiny}  ckpt_path={{here}}/evil.ckpt"),
            heavy=True,
            says="evil.",
        )
    yield Case(
        "a checkpoint, with torch's switch in the environment",
        with_file(
            "evil.ckpt", write_pickle, f"{tiny}  ckpt_path={{here}}/evil.ckpt",
            TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1",
        ),
        heavy=True,
            says="evil.",
    )  # fmt: skip
    network = "model=torchvision  model.name=squeezenet1_1  model.resize=64  data=synthetic"
    yield Case(
        "weights in a file",
        with_file("evil.pth", write_pickle, f"{network}  model.weights={{here}}/evil.pth"),
        heavy=True,
        says="evil.",
    )
    yield Case(
        "weights where downloads are kept",
        with_file(
            "cache", write_cached_weights, f"{network}  model.weights=DEFAULT", TORCH_HOME="{here}/cache"
        ),
        codes=(2,),
        heavy=True,
        says="squeezenet1_1-b8a52dc0.pth",
    )


def _sbatch(here: Path, mark: Path) -> int:
    from project.errors import InputError
    from project.sweeps.launchers.slurm import SlurmLauncher

    for options in ({"partition": f"x\ntouch {mark}"}, {"additional": {f"x\ntouch {mark}\n#": 1}}):
        try:
            SlurmLauncher(**options)  # type: ignore[arg-type]
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
        else:
            return 0
    return 2


def _callback(target: str) -> str:
    return f"+callbacks.x={{_target_:{target}}}"


def _part(target: str) -> str:
    return f"+model.x={{_target_:{target}}}"
