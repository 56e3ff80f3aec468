"""Application of the server: routes, limits, and the life of its queues."""

import asyncio
import base64
import contextlib
import io
import logging
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from PIL import Image
from torch import Tensor

from project.errors import one_line
from project.inference.predict.writers import DIGITS
from project.inference.serve import metrics, pages, requests
from project.inference.serve.batching import Batcher, QueueFullError
from project.inference.serve.explanations import ExplanationQueue
from project.inference.serve.models import ModelSlot, ServedModel
from project.inference.serve.options import ModelSource, Options
from project.inference.serve.requests import ByteBudget, RequestError, Upload
from project.runtime.devices import available_cpus
from project.runtime.extras import install_command
from project.runtime.web_server import header_timeout_protocol

log = logging.getLogger(__name__)

MAX_DECODERS = 8
"""Images decoded at a time, which bounds the memory of their pixels."""
NUM_BODIES = 16
"""Largest requests that are in memory at a time; smaller ones may be more."""
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image": {"type": "array", "items": {"type": "string", "format": "binary"}}
                    },
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {"images": {"type": "array", "items": {"type": "array", "items": {}}}},
                },
                "example": {"images": [[[0, 255], [255, 0]]]},
            },
            "application/x-npy": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
"""Description of the accepted bodies for OpenAPI."""
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The body is empty, damaged, or ended early"},
    404: {"description": "No such model"},
    408: {"description": "The body did not arrive in time"},
    413: {"description": "Too many bytes, images or pixels"},
    415: {"description": "The content type is not accepted"},
    422: {"description": "An image is damaged, or an array has another shape or other values"},
    429: {"description": "The queue is full; see Retry-After"},
    503: {"description": "No answer in time; see Retry-After"},
}


class Extras(NamedTuple):
    """Options of a request for predictions; see `read_extras`."""

    top_k: int | None
    is_drawing: bool
    shows_input: bool
    explains: bool


def read_extras(
    top_k: int | None = Query(None, ge=1, description="classes in the answer"),
    drawing: bool = Query(False, description="prepare the image as handwriting was for training"),
    show_input: bool = Query(False, description="add the network's input image as a data URI"),
    explain: bool = Query(False, description="add a map of the evidence for the class of one image"),
) -> Extras:
    """Read the options of a request from its query."""
    return Extras(top_k, drawing, show_input, explain)


class ModelServer:
    """Models with their queues, and the application that answers requests.

    Args:
        options: those of the command.
        sources: names and folders of the models; the first one answers `/predict`.

    Raises:
        InputError: a model cannot be loaded.
    """

    def __init__(self, options: Options, sources: Sequence[ModelSource]) -> None:
        self.options = options
        self.slots = {source.name: ModelSlot(source, options) for source in sources}
        self.default = sources[0].name
        self.metrics = metrics.ServerMetrics()
        self.explanations = ExplanationQueue(options.accelerator)
        self.batchers: dict[str, Batcher] = {}
        self.budget = ByteBudget(NUM_BODIES * self._max_body)
        self.is_ready = False
        self._num_accepted = 0
        self._num_answered = 0
        self._decoders = ThreadPoolExecutor(min(available_cpus(), MAX_DECODERS), thread_name_prefix="decode")
        self.app = self._build_app()

    @property
    def counts(self) -> tuple[int, int]:
        """Numbers of accepted and of answered requests for predictions."""
        return self._num_accepted, self._num_answered

    @property
    def protocol(self) -> type:
        """Class of uvicorn's connections, which closes those that send no request in time."""
        return header_timeout_protocol(self.options.timeout_s)

    @property
    def _max_body(self) -> int:
        return int(self.options.max_body_mib * 2**20)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        tasks = []
        for name, slot in self.slots.items():
            options = self.options
            self.batchers[name] = Batcher(
                options.max_batch,
                options.max_wait_ms / 1000,
                options.max_queue,
                partial(self.metrics.observe_batch, name),
            )
            tasks.append(asyncio.create_task(self.batchers[name].run()))
            if options.reload_s:
                tasks.append(asyncio.create_task(self._watch(slot)))
        self.is_ready = True
        yield
        self.is_ready = False
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, slot: ModelSlot) -> None:
        """Look for newer checkpoints, at most a tenth of the time."""
        while True:
            start = time.monotonic()
            await asyncio.to_thread(slot.refresh)
            await asyncio.sleep(max(self.options.reload_s, 10 * (time.monotonic() - start)))

    def _build_app(self) -> FastAPI:
        app = FastAPI(
            title="project serve",
            version=version("project"),
            description="Classes and probabilities of images.",
            lifespan=self._lifespan,
            docs_url=None,  # FastAPI's pages load scripts from another host
            redoc_url=None,
        )

        @app.post("/predict", openapi_extra=BODY, responses=PROBLEMS, tags=["predict"])
        async def predict(request: Request, extras: Annotated[Extras, Depends(read_extras)]) -> Response:
            """Predict with the first model."""
            return await self._answer(request, self.default, extras)

        @app.post("/models/{name}/predict", openapi_extra=BODY, responses=PROBLEMS, tags=["predict"])
        async def predict_by_name(
            request: Request, name: str, extras: Annotated[Extras, Depends(read_extras)]
        ) -> Response:
            """Predict with a model by its name."""
            return await self._answer(request, name, extras)

        @app.get("/models", tags=["about"])
        async def models() -> list[dict[str, Any]]:
            """List the models."""
            return [self._describe(name) for name in self.slots]

        @app.get("/health", tags=["about"])
        async def health() -> JSONResponse:
            """Tell whether requests are answered, and by which models."""
            facts = {name: self._version(slot.model) for name, slot in self.slots.items()}
            state = {"ready": self.is_ready, "version": app.version, "models": facts}
            return JSONResponse(state, 200 if self.is_ready else 503)

        @app.get("/metrics", tags=["about"])
        async def prometheus() -> Response:
            """Return metrics for Prometheus."""
            reserved = {name: batcher.num_reserved for name, batcher in self.batchers.items()}
            return Response(self.metrics.render(self.slots, reserved), media_type=metrics.CONTENT_TYPE)

        @app.get("/", include_in_schema=False)
        async def draw() -> HTMLResponse:
            return pages.draw_page([self._describe(name) for name in self.slots])

        @app.get("/docs", include_in_schema=False)
        async def api() -> HTMLResponse:
            return pages.api_page(app.openapi())

        return app

    def _describe(self, name: str) -> dict[str, Any]:
        model = self.slots[name].model
        return {
            "name": name,
            **self._version(model),
            "classes": model.class_names,
            "input_shape": list(model.input_shape),
            "backend": self.options.backend,
            "explains": self.explanations.is_available,
        }

    @staticmethod
    def _version(model: ServedModel) -> dict[str, str]:
        return {"run": model.run, "checkpoint": model.checkpoint, "version": model.version}

    async def _answer(self, request: Request, name: str, extras: Extras) -> Response:
        """Answer a request for predictions; each accepted request is answered exactly once."""
        start = time.perf_counter()
        self._num_accepted += 1
        headers: dict[str, str] = {}
        try:
            content, status = await self._predict(request, name, extras), 200
        except RequestError as error:
            content, status = {"detail": str(error)}, error.status
            if status in (408, 413):  # the rest of the body is not read
                headers["connection"] = "close"
            if status == 429:
                headers["retry-after"] = "1"
        except QueueFullError as error:
            content, status = {"detail": str(error)}, 429
            headers["retry-after"] = str(error.retry_s)
        except TimeoutError:
            content, status = {"detail": f"no answer within {self.options.timeout_s:g} s; try again"}, 503
            headers["retry-after"] = "1"
        except Exception as error:  # of the network; the message names the cause, the log the place
            log.exception("%s: a prediction failed", name)
            content, status = {"detail": f"the prediction failed ({one_line(error)[:200]})"}, 500
        self._num_answered += 1
        known = name if name in self.slots else ""
        self.metrics.requests.labels(known, str(status)).inc()
        self.metrics.seconds.labels(known).observe(time.perf_counter() - start)
        return JSONResponse(content, status, headers)

    async def _predict(self, request: Request, name: str, extras: Extras) -> dict[str, Any]:
        if request.headers.get("sec-fetch-site") == "cross-site":
            raise RequestError(403, "requests from pages of other sites are refused")
        if name not in self.slots:
            raise RequestError(404, f"no such model (expected {', '.join(self.slots)})")
        options, batcher = self.options, self.batchers[name]
        body = await requests.read_body(request, self._max_body, options.timeout_s, self.budget)
        try:
            async with asyncio.timeout(options.timeout_s):
                uploads = await requests.parse(body, request.headers, options.max_images)
                if extras.explains:
                    self._check_explainable(len(uploads))
                batcher.reserve(len(uploads))
                try:
                    model = self.slots[name].model
                    if extras.is_drawing and model.input_shape[0] != 1:
                        raise RequestError(422, "drawing=true: the model takes color images; leave it out")
                    loop = asyncio.get_running_loop()
                    decode = partial(
                        requests.decode, uploads, model, options.max_pixels, is_drawing=extras.is_drawing
                    )
                    images = await loop.run_in_executor(self._decoders, decode)
                    probabilities = await batcher.predict(model, images)
                    if extras.explains:
                        explanation = await self.explanations.explain(name, model, images[0])
                finally:
                    batcher.release(len(uploads))
        finally:
            self.budget.used -= len(body)
        self.metrics.images.labels(name).inc(len(uploads))
        rows = _rows(model, uploads, probabilities, extras.top_k or options.top_k)
        if extras.explains:
            rows[0]["explanation"] = explanation
        if extras.shows_input:
            for row, image in zip(rows, images, strict=True):
                row["input"] = _data_uri(image)
        return {"model": name, **self._version(model), "predictions": rows}

    def _check_explainable(self, count: int) -> None:
        if not self.explanations.is_available:
            raise RequestError(
                422, f"explain=true: needs captum on the server; run {install_command('explain')} there"
            )
        if count > 1:
            raise RequestError(422, f"explain=true: {count} images (expected one); send one at a time")


def _rows(
    model: ServedModel, uploads: Sequence[Upload], probabilities: Tensor, top_k: int
) -> list[dict[str, Any]]:
    """Return a row for each image, with the keys and the rounding of `predict`'s JSON files."""
    best = probabilities.topk(min(top_k, len(model.class_names)))
    rows = []
    for upload, labels, values in zip(uploads, best.indices.tolist(), best.values.tolist(), strict=True):
        top = [
            {"class": model.class_names[label], "probability": float(f"{value:.{DIGITS}g}")}
            for label, value in zip(labels, values, strict=True)
        ]
        rows.append({**({"file": upload.name} if upload.name else {}), **top[0], "top": top})
    return rows


def _data_uri(image: Tensor) -> str:
    """Return an image (C, H, W) uint8 as a PNG file in a data URI."""
    pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    stream = io.BytesIO()
    Image.fromarray(pixels.contiguous().numpy()).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
