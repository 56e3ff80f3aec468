"""Logger that sends a run to Weights & Biases."""

import logging
import secrets
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from project.errors import summarize
from project.loggers.tracking import TrackingLogger, has_secret_arguments, run_title, shown, sweep_of
from project.runtime.secrets import redact_text

if TYPE_CHECKING:
    import PIL.Image

log = logging.getLogger(__name__)

STEP = "trainer/global_step"
"""Metric of the horizontal axis, as in Lightning's `WandbLogger`."""
TIMEOUT_S = 60
"""Longest wait for the server at the start and at the end of a run, s."""


class WandB(TrackingLogger, WandbLogger):
    """Lightning's `WandbLogger`, also for images, embeddings, sweeps and resumed runs.

    The jobs of a sweep form a group with the name of the sweep folder. A run that cannot reach the server at
    its start is written offline, below `wandb/` in its folder.

    Args:
        folder: run folder.
        project: project on the server.
        entity: user or team [None: the user's default].
        offline: write to the run folder only [False]; `wandb sync` uploads it later.
        group: group of the run [None: the sweep's name].
        tags: labels of the run [none].
        log_checkpoint: upload the best checkpoint as an artifact [True].
    """

    SERVICE: ClassVar[str] = "wandb"
    REQUIREMENTS: ClassVar[Mapping[str, Any]] = {
        "package": "wandb",
        "extra": "wandb",
        "key": "WANDB_API_KEY",
        "login": "wandb login",
        "mode": "WANDB_MODE",
        "file": "~/.netrc",
        "marks": ("wandb.ai", "forge.coreweave.com"),
        "server": "WANDB_BASE_URL",
    }

    def __init__(
        self,
        folder: str,
        project: str = "image-classification",
        entity: str | None = None,
        offline: bool = False,
        group: str | None = None,
        tags: Sequence[str] = (),
        log_checkpoint: bool = True,
    ) -> None:
        WandbLogger.__init__(self, project=project, save_dir=folder)
        self._begin(folder, log_checkpoint)
        self.options: dict[str, Any] = {
            "project": project,
            "entity": entity,
            "group": group,
            "tags": list(tags) or None,
            "mode": "offline" if offline else None,
        }

    def open_run(self) -> None:
        import wandb

        run_id = self.recorded_id() or secrets.token_hex(4)
        self.record_id(run_id)
        sweep = sweep_of(self.folder)
        options = self.options | {"group": self.options["group"] or (sweep.path.name if sweep else None)}
        options |= {"id": run_id, "name": run_title(self.folder), "dir": str(self.folder), "resume": "allow"}
        settings = wandb.Settings(
            silent=True,
            console="off",  # train.log contains the output
            init_timeout=TIMEOUT_S,
            finish_timeout=TIMEOUT_S,
            x_disable_meta=has_secret_arguments(),  # metadata contain the command line
        )
        try:
            run = wandb.init(**options, settings=settings)
        except Exception as error:  # of the server or the network
            if options["mode"] == "offline":
                raise
            reason = redact_text(summarize(error))
            log.warning("warning: logger.wandb: %s; the run is written offline", reason)
            wandb.teardown()  # which would keep the id in use
            run = wandb.init(**options | {"mode": "offline"}, settings=settings)
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        command = f"offline; upload it with: wandb sync {shown(Path(run.dir).parent)}"
        log.info("   wandb  %s", command if run.offline else run.url)
        self.remote = run

    def send_metrics(self, metrics: dict[str, float], step: int, time_s: float) -> None:
        self.remote.log(metrics | {STEP: step})

    def send_hyperparameters(self, values: dict[str, Any]) -> None:
        self.remote.config.update(values, allow_val_change=True)

    def send_text(self, name: str, text: str) -> None:
        file = Path(self.remote.dir, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        self.remote.save(str(file), base_path=self.remote.dir, policy="now")

    def send_image(self, tag: str, image: "PIL.Image.Image", step: int) -> None:
        import wandb

        self.remote.log({tag: wandb.Image(image), STEP: step})

    def send_embeddings(
        self, tag: str, points: Tensor, columns: Sequence[str], rows: Sequence[Sequence[str]], images: Tensor
    ) -> None:
        import wandb

        table = wandb.Table(columns=["image", *columns, "embedding"])
        for pixels, row, point in zip(images, rows, points, strict=True):
            picture = pixels.permute(1, 2, 0).squeeze(2).numpy()  # H, W, C; gray images H, W
            table.add_data(wandb.Image(picture), *row, point.tolist())
        self.remote.log({f"{tag}/embeddings": table})

    def send_checkpoint(self, path: Path) -> None:
        import wandb

        artifact = wandb.Artifact(f"model-{self.remote.id}", type="model")
        artifact.add_file(str(path), name=path.name)
        self.remote.log_artifact(artifact, aliases=["best", "latest"])

    def close_run(self, state: str) -> None:
        run = self.remote
        run.summary["state"] = state
        run.finish(exit_code=1 if state in ("failed", "interrupted") else 0)

    @property
    def version(self) -> str | None:
        return self.recorded_id()

    # Lightning's class has methods of these names with other arguments, which modules may call.
    @rank_zero_only
    def log_image(self, key: str, images: Any, step: int | None = None, **kwargs: Any) -> None:  # type: ignore[override]
        """Log one image, or a list of images as Lightning's `WandbLogger`."""
        if isinstance(images, list):
            WandbLogger.log_image(self, key, images, step, **kwargs)
        else:
            TrackingLogger.log_image(self, key, images, step or 0)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        TrackingLogger.log_hyperparams(self, params)

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Do nothing: the best checkpoint is sent when the run ends."""
