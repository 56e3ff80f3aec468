"""Options of `scripts/data.py`, and the configuration of their data set. Does not import torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from project.config import cli, hydra_security
from project.config.command_options import Overrides, option
from project.config.config_files import conf_folder
from project.config.derived_values import complete
from project.config.hydra_patches import VERSION_BASE
from project.config.validation import find_problems
from project.errors import DataError, InputError, one_line
from project.inference.options import Accelerator
from project.runs.comparison import LAST, compare, find_last, find_trained
from project.runs.sweep_folder import find_sweep
from project.runs.sweep_jobs import quote_override
from project.runtime import lazy_imports
from project.runtime.output_files import refuse_unwritable_output

PAGE = "data.html"
DEFAULT_SIDE = 64
"""Side to which images of several sizes are scaled, pixels."""
EXAMPLES = """\
examples:
  python scripts/data.py data=image_folder data.path=photos
  python scripts/data.py data=mnist paths.data=/sets output=mnist
  python scripts/data.py run=outputs/sweep/2026-01-31_09-30-00
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write a page about a data set: classes, sizes, samples, duplicates, damaged files.

    With a run, the page also shows its held-out images with the most suspicious labels.
    After a sweep with folds=, every training image is checked by a network that did not
    see it.
    """

    run: str | None = option(
        None, "run or sweep whose predictions check the labels, best a sweep with folds=; or last"
    )
    data: Overrides = option(Overrides(), "data set, as in training: data=mnist, data.path=photos")
    paths: Overrides = option(Overrides(), "location of the data: paths.data=FOLDER")
    task: Overrides = option(Overrides(), "task, for the targets of data=csv: task=multilabel")
    experiment: Overrides = option(Overrides(), "preset whose data set is read: experiment=mnist_cnn")
    near: bool = option(True, "also find near duplicates, by perceptual hashes")
    config_dir: Path | None = option(None, "additional folder of configuration files, as in training")
    output: Path | None = option(None, "output folder; null: data/ in the run's folder, or outputs/data")
    outputs: Path = option(Path("outputs"), "folder to search for run=last")
    accelerator: Accelerator | None = option(None, "device of the predictions; null: as in the run")
    open: bool = option(False, "open the page in a browser")

    @property
    def overrides(self) -> list[str]:
        """Overrides of the configuration, without a run."""
        return [*self.experiment, *self.task, *self.data, *self.paths]


def main(options: Options) -> None:
    """Compose the data set's configuration without torch, then write the page."""
    run = None
    if options.run is not None:
        if given := [*options.task, *options.experiment]:
            raise InputError(f"{given[0]}: the run has its own; leave it out, or leave out run")
        run = find_run(options.run, options.outputs)
    folder = options.output or (run / "data" if run is not None else options.outputs / "data")
    refuse_unwritable_output(f"output={folder}", folder, folder=True)
    config = None if run is not None else compose_data(options.overrides, options.config_dir)
    lazy_imports.defer_imports()
    from project.reporting.dataset.command import write_report  # imports torch

    lazy_imports.freeze_gc()
    file = write_report(options, folder, config, run)
    if options.open:
        import webbrowser

        webbrowser.open(file.absolute().as_uri())


def find_run(wanted: str, outputs: Path) -> Path:
    """Return the folder of a run or a sweep; refuse one without a finished run."""
    folder = find_last(outputs) if wanted == LAST else Path(wanted)
    if find_sweep(folder) is None:
        find_trained(folder)
    else:
        compare([folder], guess=True)
    return folder


def compose_data(overrides: Sequence[str], config_dir: Path | None = None) -> dict[str, Any]:
    """Return the configuration of a data set, resolved to plain values.

    Damaged images are not an error. Images of several sizes are scaled if `data.resize` is not given.

    Raises:
        InputError: a key or value is wrong, or missing.
        DataError: no image can be read.
    """
    try:
        return _compose(overrides, config_dir)
    except InputError as error:
        if isinstance(error, DataError) or not str(error).startswith("data.resize=null"):
            raise
        return _compose([*overrides, f"data.resize={DEFAULT_SIDE}"], config_dir)


def _compose(overrides: Sequence[str], config_dir: Path | None) -> dict[str, Any]:
    hydra_security.install()
    conf = conf_folder()
    search = [f"hydra.searchpath={json.dumps([str(config_dir.absolute())])}"] if config_dir else []
    with initialize_config_dir(str(conf.absolute()), **VERSION_BASE, job_name="train"):
        with cli.exit_on_errors(conf):  # explains Hydra's errors
            words = [*search, *map(_quoted, overrides)]
            config = compose("train", words, return_hydra_config=True)
        config.hydra.runtime.output_dir = str(Path("outputs", "run").absolute())
        HydraConfig.instance().set_config(config)
        complete(config)
        try:
            wrong = [line for line in find_problems(config) if line.startswith(("data.", "paths."))]
        except DataError:  # damaged images are counted; what prevents reading is raised below
            wrong = []
        if wrong:
            raise InputError("\n".join(wrong))
        try:
            plain: Any = OmegaConf.to_container(config.data, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            message = one_line(error)
            for kind in (DataError, InputError):
                if own := message.partition(f"{kind.__name__} raised while resolving interpolation: ")[2]:
                    raise kind(own) from error
            raise InputError(f"data: {message}; give it as data.KEY=VALUE") from error
    return dict(plain)


def _quoted(override: str) -> str:
    """Quote the value of an override that Hydra does not parse, such as a path with an apostrophe."""
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        key, _, value = override.partition("=")
        return f"{key}={quote_override(value)}"
    return override
