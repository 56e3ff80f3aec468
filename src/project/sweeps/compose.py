"""Jobs' configurations, as Hydra would compose them, in a tenth of the time."""

import pickle
from collections.abc import Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from project.config.hydra_patches import apply_overrides, is_group, make_loader, set_override_dirname


class Composer:
    """Composes the configuration of one job after the other.

    Hydra reads and merges every file again for each job. But files follow from the choices of groups alone,
    and the jobs of a sweep make few different ones: each is composed once, and a job's values are set on a
    copy of it.

    Args:
        loader: Hydra's.
        master: the sweep's configuration.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self.loader = loader
        self.master = master
        self._bases: dict[tuple[str, ...], bytes] = {}

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Return what `ConfigLoader.load_sweep_config` returns for these overrides of a job."""
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        choices = [override for override in parsed if self._is_choice(override)]
        config = self._base(tuple(override.input_line or "" for override in choices))
        values = [override for override in parsed if override not in choices]
        apply_overrides(values, config)
        task = [override for override in parsed if not override.is_hydra_override()]
        config.hydra.overrides.task = [override.input_line for override in task]
        config.hydra.overrides.hydra += [
            override.input_line for override in values if override.is_hydra_override()
        ]
        set_override_dirname(config)
        OmegaConf.copy_cache(from_config=self.master, to_config=config)
        return config

    def compose_job(self, overrides: Sequence[str], number: int) -> DictConfig:
        """Compose a job, with its number."""
        config = self.compose(overrides)
        with open_dict(config):
            config.hydra.job.num = number
            config.hydra.job.id = str(number)
        return config

    def _is_choice(self, override: Override) -> bool:
        return is_group(self.loader, override.key_or_group)

    def _base(self, choices: tuple[str, ...]) -> DictConfig:
        if choices not in self._bases:
            composed = self.loader.load_sweep_config(self.master, list(choices))
            self._bases[choices] = pickle.dumps(composed)  # copied faster than by deepcopy
        return pickle.loads(self._bases[choices])  # noqa: S301 (made above)


def loader_of(loader: ConfigLoader, folder: str) -> ConfigLoader:
    """A loader that reads one folder in the place of the main configuration and the folders beside it."""
    path: ConfigSearchPath = loader.get_search_path()
    elements = path.get_path()
    for element in elements:
        if element.provider == "main":
            element.path = f"file://{folder}"
    elements[:] = [one for one in elements if one.provider == "main" or not str(one.path).startswith("file:")]
    return make_loader(path)
