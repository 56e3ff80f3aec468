"""Facts about one run that its parts share."""

from dataclasses import dataclass

from omegaconf import DictConfig

from project.runs.run_folder import RunFolder
from project.runtime import torchrun


@dataclass(frozen=True)
class RunContext:
    """Where and as what a run takes place; made once from its composed configuration and passed down.

    Args:
        folder: run folder.
        in_sweep: the run is a job of a sweep.
        is_debugging: the run is a trial of a `debug=…` preset.
        ckpt_path: checkpoint to continue from [None].
        resume_force: continue with changes that make the run wrong.
    """

    folder: RunFolder
    in_sweep: bool = False
    is_debugging: bool = False
    ckpt_path: str | None = None
    resume_force: bool = False

    @classmethod
    def from_config(cls, config: DictConfig, hydra: DictConfig | None = None) -> "RunContext":
        """Read a run's context from its configuration.

        Args:
            config: composed.
            hydra: Hydra's own node [None: composed without Hydra's command].
        """
        return cls(
            folder=RunFolder(config.paths.run),
            in_sweep=hydra is not None and hydra.mode is not None and hydra.mode.name == "MULTIRUN",
            is_debugging=hydra is not None and bool(hydra.runtime.choices.get("debug")),
            ckpt_path=config.get("ckpt_path"),
            resume_force=config.get("resume_force", False),
        )

    @property
    def is_first(self) -> bool:
        """Tell whether this process writes the run folder and talks to the user."""
        return torchrun.is_rank_zero()
