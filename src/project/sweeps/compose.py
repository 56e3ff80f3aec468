"""Configurations of jobs, composed as Hydra does in a tenth of the time, and checked."""

import pickle
from collections.abc import Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from project.config.derived_values import complete
from project.config.hydra_patches import apply_overrides, is_group, make_loader, set_override_dirname
from project.config.output_paths import Output, find_misplaced, outside
from project.config.validation import find_problems
from project.errors import InputError
from project.runs.sweep_folder import SweepFolder
from project.runs.sweep_jobs import Job


class Composer:
    """Compose the configurations of a sweep's jobs.

    Hydra reads and merges every file again for each job. The files depend on the choices of groups alone, of
    which a sweep makes few: each is composed once, and a job's values are set on a copy.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self.loader = loader
        self.master = master
        self._bases: dict[tuple[str, ...], bytes] = {}

    def compose(self, overrides: Sequence[str], number: int | None = None) -> DictConfig:
        """Return the same as `ConfigLoader.load_sweep_config`, with the number of the job."""
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        choices = [one for one in parsed if is_group(self.loader, one.key_or_group)]
        config = self._base(tuple(one.input_line or "" for one in choices))
        values = [one for one in parsed if one not in choices]
        apply_overrides(values, config)
        task = [one for one in parsed if not one.is_hydra_override()]
        config.hydra.overrides.task = [one.input_line for one in task]
        config.hydra.overrides.hydra += [one.input_line for one in values if one.is_hydra_override()]
        set_override_dirname(config)
        OmegaConf.copy_cache(from_config=self.master, to_config=config)
        if number is not None:
            with open_dict(config):
                config.hydra.job.num, config.hydra.job.id = number, str(number)
        return config

    def _base(self, choices: tuple[str, ...]) -> DictConfig:
        if choices not in self._bases:
            composed = self.loader.load_sweep_config(self.master, list(choices))
            self._bases[choices] = pickle.dumps(composed)  # copied faster than by deepcopy
        return pickle.loads(self._bases[choices])  # noqa: S301 (made above)


def loader_of(loader: ConfigLoader, folder: str) -> ConfigLoader:
    """Return a loader that reads one folder instead of all folders of configuration files."""
    path = loader.get_search_path()
    elements = path.get_path()
    for element in elements:
        if element.provider == "main":
            element.path = f"file://{folder}"
    elements[:] = [one for one in elements if one.provider == "main" or not str(one.path).startswith("file:")]
    return make_loader(path)


def compose_job(composer: Composer, folder: SweepFolder, job: Job, overrides: Sequence[str]) -> DictConfig:
    """Compose a job's configuration, with the job's folder."""
    config = composer.compose(overrides, job.number)
    with read_write(config.hydra):
        config.hydra.sweep.dir = str(folder.path.absolute())
        config.hydra.sweep.subdir = job.name
        config.hydra.runtime.output_dir = str((folder.path / job.name).absolute())
    complete(config)
    return config


def refuse_problems(config: DictConfig) -> list[Output]:
    """Check a configuration, and return the paths outside its folder that the job writes to.

    Raises:
        InputError: the problems, one a line.
    """
    hydra = HydraConfig.instance()
    earlier = hydra.cfg
    hydra.set_config(config)  # for the resolver ${hydra:…}
    try:
        problems = dict.fromkeys([*find_problems(config), *find_misplaced(config)])
        if problems:
            raise InputError("\n".join(problems))
        return list(outside(config))
    finally:
        hydra.cfg = earlier
