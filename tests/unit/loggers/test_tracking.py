"""Tests of the loggers of tracking services: failures, run ids, options, requirements."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from conftest import Compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from project.config import hydra_patches
from project.config.validation import find_problems, loggers
from project.config.validation.command_request import last_of_each
from project.config.validation.declared_keys import declared_values
from project.loggers import tracking
from project.loggers.csv import MetricsCSV
from project.loggers.tracking import TrackingLogger, VisualLogger, closing, run_title, sweep_of
from project.runtime import secrets

ROOT_CONF = Path(__file__).resolve().parents[3] / "conf" / "train.yaml"


class Service(TrackingLogger):
    """Records calls; fails while `is_down`, and always for the text `rejected`."""

    SERVICE = "service"
    name = version = ""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), log_checkpoint=True)
        self.calls: list[tuple[Any, ...]] = []
        self.is_down = False

    def _record(self, *call: Any) -> None:
        if self.is_down or "rejected" in call:
            raise ConnectionError("no route to host")
        self.calls.append(call)

    def open_run(self) -> None:
        self._record("open")
        self.remote = "connection"

    def send_metrics(self, metrics: dict[str, float], step: int, time_s: float) -> None:
        self._record(metrics, step)

    def send_hyperparameters(self, values: dict[str, Any]) -> None:
        self._record(values)

    def send_text(self, name: str, text: str) -> None:
        self._record(name, text)

    def send_checkpoint(self, path: Path) -> None:
        self._record(path)

    def close_run(self, state: str) -> None:
        self._record("close", state)


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


def test_calls_of_an_outage_are_repeated_in_order_after_one_warning(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(tracking.time, "monotonic", lambda: clock[0])
    service.log_metrics({"a": 1}, step=1)
    service.is_down = True
    for step in (2, 3):
        clock[0] += tracking.RETRY_S + 1
        service.log_metrics({"a": step}, step=step)
    service.is_down = False
    service.log_metrics({"a": 4}, step=4)  # no attempt so soon after a failure
    assert service.calls == [("open",), ({"a": 1.0}, 1)]
    clock[0] += tracking.RETRY_S + 1
    service.save()
    assert service.calls == [("open",), *(({"a": float(step)}, step) for step in (1, 2, 3, 4))]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["warning: logger.service: no route to host; calls are kept and repeated every 30 s"]


def test_rejected_call_is_dropped_and_later_calls_are_sent(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "RETRY_S", 0.0)
    service.log_markdown("test/classes", "rejected", 0)
    for step in range(tracking.MAX_ATTEMPTS - 1):
        assert service.calls == [("open",)]
        service.log_metrics({"a": 1}, step=step)
    service.close("done")
    steps = [({"a": 1.0}, step) for step in range(tracking.MAX_ATTEMPTS - 1)]
    assert service.calls == [("open",), *steps, ("close", "done")]
    assert "warning: logger.service: 1 calls were not sent (no route to host)" in caplog.text


def test_run_ends_although_the_service_is_down(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    service.is_down = True
    service.log_hyperparams({"lr": 0.1})
    service.log_checkpoint(Path("best.ckpt"))
    service.close("done")
    assert "warning: logger.service: 3 calls were not sent (no route to host)" in caplog.text


def test_object_of_a_service_that_is_down_does_nothing(service: Service) -> None:
    service.is_down = True
    assert service.experiment.log_table("x", [1]) is None  # Lightning reads it before a training starts
    service.is_down = False
    service._failed_at = -tracking.RETRY_S
    assert service.experiment == "connection"


@pytest.mark.parametrize(
    ("error", "status", "state"),
    [
        (None, {}, "done"),
        (None, {"state": "pruned"}, "pruned"),
        (ValueError("no"), {}, "failed"),
        (SystemExit(143), {}, "interrupted"),
    ],
)
def test_closing_passes_on_the_state(
    service: Service, error: BaseException | None, status: dict[str, str], state: str
) -> None:
    def work() -> None:
        with closing([service], status):
            service.log_hyperparams({"lr": 0.1})
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(type(error), match=str(error)):
            work()
    assert service.calls == [("open",), ({"lr": 0.1},), ("close", state)]


def test_unused_logger_is_not_opened(service: Service) -> None:
    service.close("done")
    assert service.calls == []


def test_ids_of_services_are_kept_in_the_run_folder(tmp_path: Path) -> None:
    first = Service(tmp_path)
    assert first.recorded_id() is None
    first.record_id("abc")
    tracking.record_run_id(tmp_path, "other", "def")
    assert Service(tmp_path).recorded_id() == "abc"
    (tmp_path / tracking.RUN_IDS).write_text("{")
    assert Service(tmp_path).recorded_id() is None


def test_sweep_of_a_job_gives_the_group(tmp_path: Path) -> None:
    job = tmp_path / "2026-01-02_03-04-05" / "0_lr0.1"
    job.mkdir(parents=True)
    assert sweep_of(job) is None
    (job.parent / "sweep.json").write_text("{}")
    sweep = sweep_of(job)
    assert sweep is not None
    assert sweep.path.name == "2026-01-02_03-04-05"
    assert run_title(job) == "2026-01-02_03-04-05/0_lr0.1"


def test_visual_loggers(service: Service, tmp_path: Path) -> None:
    from lightning.pytorch.loggers import WandbLogger

    from project.loggers.tensorboard import TensorBoard

    assert isinstance(service, VisualLogger)
    assert isinstance(TensorBoard(str(tmp_path)), VisualLogger)
    assert not isinstance(MetricsCSV("metrics.csv"), VisualLogger)
    assert not hasattr(WandbLogger, "log_markdown")  # its `log_image` takes a list


def test_secret_on_the_command_line_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "+task.hub_token=abcdefgh12345"])
    assert tracking.has_secret_arguments()
    monkeypatch.setattr(sys, "argv", ["train.py", "optim.lr=0.1"])
    assert not tracking.has_secret_arguments()
    assert secrets.REDACTED in secrets.redact_text("+task.hub_token=abcdefgh12345")


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("logger=default", ["csv", "tensorboard"]),
        ("logger=csv", ["csv"]),
        ("logger=none", []),
        ("logger=wandb", ["csv", "wandb"]),
        ("logger=[tensorboard,wandb]", ["csv", "tensorboard", "wandb"]),
        ("logger=[mlflow,comet,csv]", ["comet", "csv", "mlflow"]),
    ],
)
def test_metrics_table_comes_with_every_logger(composed: Compose, override: str, names: list[str]) -> None:
    assert sorted(composed(override).logger) == names


def test_several_options_are_recorded_and_their_keys_checked(composer: Compose) -> None:
    hydra_patches.record_option_lists()
    config = composer("logger=[tensorboard,mlflow]")
    assert config.hydra.runtime.choices.logger == ["tensorboard", "mlflow"]
    assert OmegaConf.is_list(config.hydra.runtime.choices.logger)
    assert composer("logger=[csv,tensorboard]").hydra.runtime.choices.logger == ["csv", "tensorboard"]
    assert composer("logger=wandb").hydra.runtime.choices.logger == "wandb"
    config = composer("logger=[tensorboard,mlflow]")
    assert config.hydra.runtime.choices.callbacks == "default"
    declared = declared_values(config)
    assert declared["logger.mlflow._target_"] == "project.loggers.mlflow.MLflow"
    assert declared["logger.tensorboard._target_"] == "project.loggers.tensorboard.TensorBoard"
    wrong = composer("logger=[csv,tensorboard]", "logger.tensorboard.folder=3")
    (line,) = find_problems(wrong)
    assert line.startswith("logger.tensorboard.folder=3: expected a string, got 3")


def test_other_groups_take_one_option(composer: Compose) -> None:
    hydra_patches.record_option_lists()
    config = composer("optim=[adam,sgd]")
    assert "optim=[adam,sgd]: one option is needed; -m optim=A,B runs a job with each" in find_problems(
        config
    )


def test_last_list_of_loggers_counts() -> None:
    kept, notes = last_of_each(["logger=[csv,wandb]", "logger=tensorboard"], ROOT_CONF)
    assert kept == ["logger=tensorboard"]
    assert len(notes) == 1


def test_list_and_sweep_of_loggers_differ() -> None:
    parse = OverridesParser.create().parse_override
    assert not parse("logger=[csv,wandb]").is_sweep_override()
    sweep = parse("logger=[csv,wandb],tensorboard")
    assert list(sweep.sweep_string_iterator()) == ["[csv,wandb]", "tensorboard"]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Pretend that the packages are installed, in an environment without credentials."""
    monkeypatch.setattr(loggers, "find_spec", lambda name: ModuleSpec(name, None, origin="file"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "COMET_API_KEY", "COMET_MODE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


NO_KEY = (
    "logger.wandb: no API key (expected the variable WANDB_API_KEY or a login); run 'wandb login', or set "
    "logger.wandb.offline=true"
)


def test_missing_package_is_refused(composer: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    assert list(find_problems(composer("logger=mlflow"))) == [
        "logger.mlflow: needs the package mlflow, which is not installed; run uv sync --extra mlflow"
    ]


def test_missing_api_key_is_refused(composer: Compose, installed: pytest.MonkeyPatch) -> None:
    assert list(find_problems(composer("logger=wandb"))) == [NO_KEY]
    assert not list(find_problems(composer("logger=wandb", "logger.wandb.offline=true")))
    assert not list(find_problems(composer("logger=mlflow")))
    assert len(list(find_problems(composer("logger=[wandb,comet]")))) == 2


@pytest.mark.parametrize(("name", "value"), [("WANDB_API_KEY", "k" * 40), ("WANDB_MODE", "offline")])
def test_variables_of_the_service_suffice(
    composer: Compose, installed: pytest.MonkeyPatch, name: str, value: str
) -> None:
    installed.setenv(name, value)
    assert not list(find_problems(composer("logger=wandb")))


def test_login_of_the_right_server_suffices(
    composer: Compose, installed: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password x\n")
    assert not list(find_problems(composer("logger=wandb")))
    installed.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert list(find_problems(composer("logger=wandb"))) == [NO_KEY]
