"""Logger that sends a run to Comet."""

import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from project.loggers.tracking import TrackingLogger, has_secret_arguments, run_title, shown, sweep_of

if TYPE_CHECKING:
    import PIL.Image

log = logging.getLogger(__name__)

DEFAULTS: Mapping[str, str] = {
    "COMET_DISABLE_AUTO_LOGGING": "1",
    "COMET_LOGGING_CONSOLE": "ERROR",
}
"""Variables with defaults for the package, which reads them when it is imported."""


class Comet(TrackingLogger):
    """Logs to Comet.

    The jobs of a sweep have the sweep's name as a tag.

    Args:
        folder: run folder.
        project: project on the server.
        workspace: user or team [None: the user's default].
        offline: write an archive to the run folder only [False]; `comet upload` uploads it later.
        tags: labels of the run [none].
        log_checkpoint: upload the best checkpoint [True].
    """

    SERVICE: ClassVar[str] = "comet"
    REQUIREMENTS: ClassVar[Mapping[str, Any]] = {
        "package": "comet_ml",
        "extra": "comet",
        "key": "COMET_API_KEY",
        "login": "comet login",
        "mode": "COMET_MODE",
        "file": "~/.comet.config",
        "marks": ("api_key",),
    }

    def __init__(
        self,
        folder: str,
        project: str = "image-classification",
        workspace: str | None = None,
        offline: bool = False,
        tags: Sequence[str] = (),
        log_checkpoint: bool = True,
    ) -> None:
        super().__init__(folder, log_checkpoint)
        self.project = project
        self.workspace = workspace
        self.offline = offline
        self.tags = list(tags)

    @property
    def name(self) -> str:
        return self.project

    @property
    def version(self) -> str | None:
        return self.recorded_id()

    def open_run(self) -> None:
        for variable, value in DEFAULTS.items():
            os.environ.setdefault(variable, value)
        import comet_ml

        key = self.recorded_id() or secrets.token_hex(16)
        sweep = sweep_of(self.folder)
        config = comet_ml.ExperimentConfig(
            name=run_title(self.folder),
            tags=[*self.tags, *([sweep.path.name] if sweep else [])],
            offline_directory=str(self.folder / "comet"),
            parse_args=False,
            log_code=False,
            log_env_details=not has_secret_arguments(),  # which contain the command line
            auto_output_logging=False,
            display_summary_level=0,
        )
        self.remote = comet_ml.start(
            workspace=self.workspace,
            project=self.project,
            experiment_key=key,
            mode="get_or_create",
            online=not self.offline,
            experiment_config=config,
        )
        self.record_id(key)
        archive = f"offline; upload it with: comet upload {shown(self.folder)}/comet/*.zip"
        log.info("   comet  %s", archive if self.offline else self.remote.url)

    def send_metrics(self, metrics: dict[str, float], step: int, time_s: float) -> None:
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        self.remote.log_metrics(values, step=step, epoch=metrics.get("epoch"))

    def send_hyperparameters(self, values: dict[str, Any]) -> None:
        self.remote.log_parameters(values)

    def send_text(self, name: str, text: str) -> None:
        self.remote.log_asset_data(text, name=name, overwrite=True)

    def send_image(self, tag: str, image: "PIL.Image.Image", step: int) -> None:
        self.remote.log_image(image, name=tag, step=step)

    def send_checkpoint(self, path: Path) -> None:
        self.remote.log_model("best", str(path), overwrite=True)

    def close_run(self, state: str) -> None:
        self.remote.log_other("state", state)
        self.remote.end()
