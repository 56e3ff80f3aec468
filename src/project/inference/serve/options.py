"""Options of `scripts/serve.py` and their checks. Does not import torch."""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from project.config.command_options import option
from project.errors import InputError
from project.inference.options import Accelerator, Tta
from project.inference.run_config import check_request, read_config, require_image_classifier
from project.runs.comparison import LAST, find_last, find_trained
from project.runs.run_folder import RunFolder
from project.runs.sweep_folder import find_sweep
from project.runtime import lazy_imports
from project.runtime.extras import import_extra
from project.runtime.text import printable
from project.runtime.web_server import EXTRA, LOOPBACK, MAX_PORT, bind, serve_app, url_of

TOKEN_VARIABLE = "PROJECT_SERVE_TOKEN"  # noqa: S105
"""Environment variable with the token, for containers."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Name of a model, as it occurs in URLs."""
LOCAL = (LOOPBACK, "localhost", "::1")
EXAMPLES = """\
examples:
  python scripts/serve.py
  python scripts/serve.py run=outputs/sweep/2026-01-31_09-30-00 port=9000
  python scripts/serve.py run=small=outputs/a,large=outputs/b host=0.0.0.0
  curl -F image=@photo.jpg http://127.0.0.1:8000/predict
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Serve trained image classifiers over HTTP, with a page to draw on or drop
    pictures. SIGTERM and Ctrl-C finish accepted requests. A newer checkpoint of the
    run, or a better run of the sweep, replaces the model without a pause.
    """

    run: list[str] = option([LAST], "run or sweep folders (its best run), or last; NAME=FOLDER sets a name")
    weights: str = option("auto", "auto (those of the run's test), best, last, previous, or a file")
    tta: Tta | None = option(None, "test-time augmentation; null: as in the run's test")
    outputs: Path = option(Path("outputs"), "folder to search for run=last")
    host: str = option(LOOPBACK, "address to listen on; 0.0.0.0: all addresses of this machine")
    port: int = option(8000, "port; 0: any free port", least=0, most=MAX_PORT)
    token: str | None = option(
        None,
        f"secret that requests must send, as in '${{oc.env:NAME}}'; null: that of {TOKEN_VARIABLE}, if set",
    )
    backend: Literal["torch", "onnx"] = option("torch", "torch, or onnx: the run's export/model.onnx")
    accelerator: Accelerator = option("auto", "device")
    top_k: int = option(3, "classes in an answer, unless ?top_k= is given", least=1)
    max_batch: int = option(64, "maximum number of images in a forward pass", least=1)
    max_wait_ms: float = option(
        2.0, "longest wait for more images in a batch, milliseconds", least=0, most=10_000
    )
    max_queue: int = option(
        512, "maximum number of waiting images; more are refused with status 429", least=1
    )
    max_images: int = option(256, "maximum number of images in a request", least=1)
    max_body_mib: float = option(16.0, "maximum size of a request, MiB", least=0.001, most=4096)
    max_pixels: int = option(25_000_000, "maximum number of pixels in an image", least=1)
    timeout_s: float = option(
        30.0, "longest time for a request to arrive, and then to be answered, seconds", least=0.1
    )
    reload_s: float = option(2.0, "seconds between searches for newer checkpoints; 0: never", least=0)


class ModelSource(NamedTuple):
    """Name of a model, and the run or sweep folder that it comes from."""

    name: str
    folder: Path


def main(options: Options) -> None:
    """Check the options without torch, load the models, and answer requests until a signal."""
    if options.max_images > options.max_queue:
        raise InputError(
            f"max_images={options.max_images}: more than max_queue={options.max_queue}, so such a request "
            "would never be accepted; set max_queue to at least max_images"
        )
    token = options.token or os.environ.get(TOKEN_VARIABLE) or None
    sources = find_sources(options)
    for module in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
        import_extra(module, "serve", EXTRA)
    listener = bind(options.host, options.port)
    lazy_imports.defer_imports()
    from project.inference.serve.app import ModelServer  # imports torch

    server = ModelServer(options, sources)
    lazy_imports.freeze_gc()
    url = url_of(listener)
    for name, slot in server.slots.items():
        path = "" if len(sources) == 1 else f"models/{name}/predict"
        print(f"{name}: {slot.model.run}, {slot.model.checkpoint}  {url}/{path}", flush=True)
    if options.host not in LOCAL and token is None:
        print("warning: answers every machine that reaches this one; token=… restricts this", file=sys.stderr)
    serve_app(
        server.app, listener, key="serve", token=token, shutdown_s=2 * options.timeout_s, http=server.protocol
    )
    accepted, answered = server.counts
    print(f"stopped: {answered:,} of {accepted:,} requests answered", flush=True)


def find_sources(options: Options) -> list[ModelSource]:
    """Return the models to serve, each with a name of its own.

    Raises:
        InputError: a folder is not a classifier's run or has no such checkpoint, or two models have one name.
    """
    sources: dict[str, ModelSource] = {}
    for word in options.run:
        given, separator, folder = word.partition("=")
        if not separator or Path(word).exists():
            given, folder = "", word
        if given and not NAME.fullmatch(given):
            raise InputError(
                f"run={printable(word)}: the name may have letters, digits, '.', '_' and '-'; choose another"
            )
        run = find_trained(folder, options.outputs)
        config = read_config(run)
        require_image_classifier(config, folder)
        check_request(run, options.weights, ())
        if options.backend == "onnx":
            find_exported(run)
        name = given or _default_name(str(config.get("name") or run.path.name), sources)
        if name in sources:
            raise InputError(f"run={printable(word)}: a second model named {name}; write OTHER=FOLDER")
        around = find_last(options.outputs) if folder == LAST else Path(folder).expanduser()
        sources[name] = ModelSource(name, around if find_sweep(around) is not None else run.path)
    return list(sources.values())


def _default_name(title: str, taken: dict[str, ModelSource]) -> str:
    """Return a title as a name that fits a URL, numbered if it is taken."""
    name = (re.sub(r"[^A-Za-z0-9._-]+", "-", title).strip("-._") or "model")[:60]
    number = 2
    while (numbered := name if name not in taken else f"{name}-{number}") in taken:
        number += 1
    return numbered


def find_exported(run: RunFolder) -> Path:
    """Return the ONNX file of a run.

    Raises:
        InputError: the run has not been exported.
    """
    file = run.path / "export" / "model.onnx"
    if not file.is_file():
        raise InputError(
            f"backend=onnx: {file} does not exist; run python scripts/export.py run={run.shown} format=onnx"
        )
    return file
