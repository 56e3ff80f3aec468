"""Logger that sends a run to MLflow."""

import logging
import os
import time
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_only

from project.loggers.tracking import (
    TrackingLogger,
    read_run_ids,
    record_run_id,
    run_title,
    sweep_of,
)
from project.runtime.secrets import redact_text

if TYPE_CHECKING:
    import PIL.Image

log = logging.getLogger(__name__)

WRITE_INTERVAL_S = 2.0
"""Minimum time between two batches of metrics, s; writing one to a database takes 10 ms or more."""
MAX_METRICS = 1000
"""Metrics per request, as the server allows."""
MAX_PARAMS = 100
"""Parameters per request, as the server allows."""
MAX_VALUE_LENGTH = 500
"""Length of a parameter's value, characters; the rest is omitted."""
LOCAL = "sqlite:///"
STATES: Mapping[str, str] = {
    "done": "FINISHED",
    "pruned": "FINISHED",
    "paused": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}
REQUEST_LIMITS: Mapping[str, str] = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
"""Variables with defaults for the time that a run waits for an unreachable server."""


class MLflow(TrackingLogger):
    """Logs to an MLflow server, or to a local database that `mlflow ui` shows.

    The jobs of a sweep are nested below one parent run. Metrics are written at most every two seconds.

    Args:
        folder: run folder.
        tracking_uri: address of the server, or `sqlite:///FILE`.
        experiment: name of the experiment, which is created if there is none.
        tags: labels of the run by name [none].
        log_checkpoint: store the best checkpoint as an artifact [True].
    """

    SERVICE: ClassVar[str] = "mlflow"
    REQUIREMENTS: ClassVar[Mapping[str, Any]] = {"package": "mlflow", "extra": "mlflow"}

    def __init__(
        self,
        folder: str,
        tracking_uri: str,
        experiment: str = "image-classification",
        tags: Mapping[str, str] | None = None,
        log_checkpoint: bool = True,
    ) -> None:
        super().__init__(folder, log_checkpoint)
        self.tracking_uri = tracking_uri
        self.experiment_name = experiment
        self.tags = dict(tags or {})
        self.run_id = ""
        self._metrics: list[tuple[str, float, int, int]] = []  # name, value, time in ms, step
        self._written_at = time.monotonic()

    @property
    def name(self) -> str:
        return self.experiment_name

    @property
    def version(self) -> str:
        return self.run_id

    def open_run(self) -> None:
        for variable, value in REQUEST_LIMITS.items():
            os.environ.setdefault(variable, value)
        from mlflow import MlflowClient

        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # retries
        database = self._database()
        # Processes that create the tables at the same time, as the jobs of a sweep, would fail.
        with FileLock(f"{database}.lock") if database else nullcontext():
            client = MlflowClient(self.tracking_uri)
            run_id = self.recorded_id() or self._create_run(client)
        client.update_run(run_id, status="RUNNING")
        self.remote, self.run_id = client, run_id
        look = f"; look: mlflow ui --backend-store-uri {self.tracking_uri}"
        local = look if self.tracking_uri.startswith(LOCAL) else ""
        log.info("  mlflow  %s%s", redact_text(self.tracking_uri), local)

    def _database(self) -> Path | None:
        """Return the file of a local database; None for a server."""
        is_local = self.tracking_uri.startswith(LOCAL)
        return Path(self.tracking_uri.removeprefix(LOCAL)).absolute() if is_local else None

    def _create_run(self, client: Any) -> str:
        """Create a run, and return its id."""
        experiment_id = self._experiment_id(client)
        tags = self.tags | self._sweep_tags(client, experiment_id)
        run = client.create_run(experiment_id, run_name=run_title(self.folder), tags=_with_context(tags))
        self.record_id(run.info.run_id)
        return str(run.info.run_id)

    def _experiment_id(self, client: Any) -> str:
        """Return the id of the experiment; create the experiment if there is none."""
        database = self._database()  # its default for artifacts is a folder below the working directory
        location = (database.parent / "mlartifacts").as_uri() if database else None
        for is_last in (False, True):
            found = client.get_experiment_by_name(self.experiment_name)
            if found is not None:
                return found.experiment_id
            try:
                return client.create_experiment(self.experiment_name, artifact_location=location)
            except Exception:  # another job of the sweep has just created it
                if is_last:
                    raise
        raise AssertionError

    def _sweep_tags(self, client: Any, experiment_id: str) -> dict[str, str]:
        """Return the tags that nest a job below the parent run of its sweep, which the first job creates."""
        if (sweep := sweep_of(self.folder)) is None:
            return {}
        with FileLock(sweep.path / ".mlflow.lock"):
            parent = read_run_ids(sweep.path).get(self.SERVICE)
            if parent is None:
                run = client.create_run(experiment_id, run_name=sweep.path.name, tags=_with_context({}))
                parent = run.info.run_id
                client.set_terminated(parent)
                record_run_id(sweep.path, self.SERVICE, parent)
        return {"mlflow.parentRunId": parent, "sweep": sweep.path.name}

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        now_ms = int(time.time() * 1000)
        self._metrics += [(name, float(value), now_ms, step or 0) for name, value in metrics.items()]
        if time.monotonic() - self._written_at >= WRITE_INTERVAL_S:
            self._flush()

    def _flush(self, deadline: float | None = None) -> None:
        self._written_at = time.monotonic()
        for start in range(0, len(self._metrics), MAX_METRICS):
            rows = self._metrics[start : start + MAX_METRICS]
            self._pending.append(partial(self._send_batch, rows))
        self._metrics = []
        super()._flush(deadline)

    def _send_batch(self, rows: list[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        self.remote.log_batch(self.run_id, metrics=[Metric(*row) for row in rows])

    def send_hyperparameters(self, values: dict[str, Any]) -> None:
        from mlflow.entities import Param, RunTag

        texts = {name: str(value)[:MAX_VALUE_LENGTH] for name, value in values.items()}
        known = self.remote.get_run(self.run_id).data.params
        params = [Param(name, text) for name, text in texts.items() if name not in known]
        # Parameters cannot be changed; a resumed run may have other values.
        changed = [
            RunTag(f"resumed.{name}", text) for name, text in texts.items() if known.get(name, text) != text
        ]
        for start in range(0, len(params), MAX_PARAMS):
            self.remote.log_batch(self.run_id, params=params[start : start + MAX_PARAMS])
        if changed:
            self.remote.log_batch(self.run_id, tags=changed)

    def send_text(self, name: str, text: str) -> None:
        self.remote.log_text(self.run_id, text, name)

    def send_image(self, tag: str, image: "PIL.Image.Image", step: int) -> None:
        self.remote.log_image(self.run_id, image, key=tag, step=step)

    def send_checkpoint(self, path: Path) -> None:
        self.remote.log_artifact(self.run_id, str(path), "checkpoints")

    def close_run(self, state: str) -> None:
        self.remote.set_tag(self.run_id, "state", state)
        self.remote.set_terminated(self.run_id, STATES[state])


def _with_context(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags with those of user, program and commit, which MLflow shows."""
    from mlflow.tracking.context.registry import resolve_tags

    return resolve_tags(dict(tags))
