"""Tests of the server: answers equal to `predict`'s, batching, limits, hot reload, and a graceful stop."""

import asyncio
import base64
import io
import json
import shutil
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forked_command
import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from served import TIMEOUT_S, Served, serving

from project.config.command_options import read_options
from project.errors import InputError
from project.inference.load_run import load_run
from project.inference.predict.predictions import predict
from project.inference.serve import explanations
from project.inference.serve.app import ModelServer
from project.inference.serve.batching import Batcher, QueueFullError
from project.inference.serve.drawing import EmptyDrawingError, prepare_drawing
from project.inference.serve.models import ModelSlot
from project.inference.serve.options import Options, find_sources
from project.runs import checkpoint_files
from project.runs.run_folder import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a small network on the digits; return the run folder."""
    folder = tmp_path_factory.mktemp("serve")
    words = [
        "model=mlp",
        "logger=none",
        "trainer.max_epochs=2",
        f"hydra.run.dir={folder / 'run'}",
        "name=digits",
    ]
    forked_command.run(*words, cwd=folder)
    return folder / "run"


@pytest.fixture(scope="module")
def color_run(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("serve_color")
    words = ["model=mlp", "data=image_folder", f"data.path={image_folder}", "data.resize=8", "logger=none"]
    words += ["trainer.max_epochs=1", "data.batch_size=8", f"hydra.run.dir={folder / 'run'}", "name=insects"]
    forked_command.run(*words, cwd=folder)
    return folder / "run"


def server_of(run: Path | str, *words: str, max_images: int = 8) -> ModelServer:
    limits = [f"max_images={max_images}", "max_body_mib=1", "max_pixels=100000"]
    options = read_options(Options, [f"run={run}", *limits, *words])
    return ModelServer(options, find_sources(options))


class Client:
    """Synchronous requests to an application in this process, in a loop of its own."""

    def __init__(self, server: ModelServer) -> None:
        self.server = server
        self.loop = asyncio.new_event_loop()
        self.lifespan = server.app.router.lifespan_context(server.app)
        self.loop.run_until_complete(self.lifespan.__aenter__())
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(server.app), base_url="http://127.0.0.1")

    def __call__(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.loop.run_until_complete(self.http.request(method, path, **options))

    def post(self, path: str = "/predict", **options: Any) -> httpx.Response:
        return self("POST", path, **options)

    def close(self) -> None:
        self.loop.run_until_complete(self.http.aclose())
        self.loop.run_until_complete(self.lifespan.__aexit__(None, None, None))
        self.loop.close()


@pytest.fixture(scope="module")
def client(run: Path, color_run: Path) -> Iterator[Client]:
    client = Client(server_of(f"{run},paint={color_run}"))
    yield client
    client.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images of several sizes and modes."""
    folder = tmp_path_factory.mktemp("images")
    draws = np.random.default_rng(0)
    paths = []
    for number, (mode, size, suffix) in enumerate(
        [
            ("L", (28, 28), "png"),
            ("RGB", (40, 31), "jpg"),
            ("RGBA", (9, 50), "png"),
            ("L", (64, 64), "tif"),
            ("P", (17, 17), "gif"),
        ]
    ):
        bands = {"L": 1, "P": 1, "RGB": 3, "RGBA": 4}[mode]
        pixels = draws.integers(0, 256, (*size[::-1], bands), dtype=np.uint8)
        image = Image.fromarray(pixels[..., 0] if bands == 1 else pixels)
        image = image.convert("P") if mode == "P" else image
        image.save(path := folder / f"{number}.{suffix}")
        paths.append(path)
    return paths


def png(pixels: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


# ---- answers


@pytest.mark.parametrize("name", ["digits", "paint"])
def test_answers_equal_those_of_predict(client: Client, files: list[Path], name: str) -> None:
    trained = load_run(RunFolder(client.server.slots[name].source.folder))
    expected = list(predict(trained, map(str, files), top_k=2))
    sent = [("image", (file.name, file.read_bytes())) for file in files]
    answer = client.post(f"/models/{name}/predict?top_k=2", files=sent).json()
    assert answer["model"] == name
    for file, row, one in zip(files, answer["predictions"], expected, strict=True):
        assert row["file"] == file.name
        assert [entry["class"] for entry in row["top"]] == list(one.classes)
        probabilities = [entry["probability"] for entry in row["top"]]
        assert probabilities == pytest.approx(list(one.probabilities), rel=1e-5)
        assert (row["class"], row["probability"]) == (one.class_name, probabilities[0])
    single = client.post(f"/models/{name}/predict", content=files[1].read_bytes()).json()["predictions"]
    assert single[0]["probability"] == pytest.approx(expected[1].probability, rel=1e-5)


def test_arrays_are_answered_as_files(client: Client, color_run: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 20, 16), dtype=np.uint8)
    as_files = client.post(files=[("image", ("x.png", png(image))) for image in pixels]).json()["predictions"]
    expected = [row["probability"] for row in as_files]
    as_json = client.post(json={"images": pixels.tolist()}).json()["predictions"]
    for given in (
        pixels,
        pixels[:, None],
        pixels[..., None],
        np.asfortranarray(pixels),
        pixels.astype(np.int64),
    ):
        rows = client.post(content=npy(given)).json()["predictions"]
        assert [row["probability"] for row in rows] == pytest.approx(expected, rel=1e-5)
    assert [row["probability"] for row in as_json] == pytest.approx(expected, rel=1e-5)
    color = np.random.default_rng(2).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    last = client.post("/models/paint/predict", content=npy(color)).json()["predictions"]
    first = client.post("/models/paint/predict", content=npy(color.transpose(0, 3, 1, 2))).json()[
        "predictions"
    ]
    assert last == first
    assert client.post("/models/paint/predict", content=npy(color[0])).json()["predictions"] == last[:1]


def test_facts(client: Client) -> None:
    health = client("GET", "/health")
    assert health.status_code == 200
    assert health.json()["ready"] is True
    assert set(health.json()["models"]) == {"digits", "paint"}
    models = client("GET", "/models").json()
    assert [(model["name"], model["input_shape"]) for model in models] == [
        ("digits", [1, 28, 28]),
        ("paint", [3, 8, 8]),
    ]
    assert models[1]["classes"] == ["ant", "bee", "cat"]
    paths = client("GET", "/openapi.json").json()["paths"]
    assert {"/predict", "/models/{name}/predict", "/health", "/metrics", "/models"} == set(paths)
    for page in ("/", "/docs"):
        answer = client("GET", page)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "https://" not in answer.text
    before = client("GET", "/metrics").text
    client.post(json={"images": [[[1, 2], [3, 4]]] * 2})
    after = client("GET", "/metrics").text

    def value(text: str, line: str) -> float:
        return next((float(one.split()[-1]) for one in text.splitlines() if one.startswith(line)), 0.0)

    images = 'project_images_total{model="digits"}'
    assert value(after, images) - value(before, images) == 2
    assert value(after, 'project_queue_images{model="digits"}') == 0


def test_an_answer_is_explained(client: Client, run: Path) -> None:
    pytest.importorskip("captum")
    from project.inference.explain.explainer import Explainer

    pixels = np.random.default_rng(5).integers(0, 256, (28, 28), dtype=np.uint8)
    (row,) = client.post("/predict?explain=true&show_input=true", content=png(pixels)).json()["predictions"]
    expected = Explainer(load_run(RunFolder(run)), "occlusion").maps(torch.from_numpy(pixels)[None, None])
    assert row["explanation"]["class"] == row["class"]

    def decoded(uri: str) -> Any:
        return np.asarray(
            Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
        )

    assert (decoded(row["input"]) == pixels).all()
    opacity = decoded(row["explanation"]["map"])[..., 3] / 230
    assert opacity == pytest.approx(expected.maps[0].numpy(), abs=0.01)
    two = client.post("/predict?explain=true", files=[("image", ("a.png", png(pixels)))] * 2)
    assert two.status_code == 422
    client.server.explanations.is_available = False
    assert "captum" in client.post("/predict?explain=true", content=png(pixels)).json()["detail"]
    client.server.explanations.is_available = True


def test_a_map_without_evidence_is_replaced(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stub:
        def __init__(self, trained: Any, method: str, accelerator: str) -> None:
            self.method = method

        def maps(self, images: torch.Tensor) -> Any:
            value = 1.0 if self.method == "auto" else 0.0
            return SimpleNamespace(maps=torch.full((1, 28, 28), value), targets=torch.tensor([3]))

    monkeypatch.setattr(explanations, "Explainer", Stub)
    queue = explanations.ExplanationQueue("cpu")
    model = client.server.slots["digits"].model
    found = client.loop.run_until_complete(queue.explain("digits", model, torch.zeros(1, 28, 28)))
    assert (found["class"], found["method"]) == ("3", "auto")


# ---- wrong input


def bomb() -> bytes:
    """Return a small PNG file of 30,000 × 30,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(2**20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def header_npy(shape: str) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


JSON = {"content-type": "application/json"}
WRONG: dict[str, tuple[int, dict[str, Any]]] = {
    "empty body": (400, {"content": b""}),
    "text": (422, {"content": b"hello"}),
    "truncated": (422, {"content": png(np.random.default_rng(0).integers(0, 256, (30, 30)))[:400]}),
    "bomb": (413, {"content": bomb()}),
    "pixels": (413, {"content": png(np.zeros((400, 300)))}),
    "content type": (415, {"content": b"x", "headers": {"content-type": "text/html"}}),
    "large body": (413, {"content": bytes(2**20 + 1)}),
    "lying length": (413, {"content": b"x", "headers": {"content-length": str(10**12)}}),
    "huge json": (413, {"content": b"[" * (2**20 + 1), "headers": JSON}),
    "deep json": (400, {"content": b"[" * 100_000, "headers": JSON}),
    "broken json": (400, {"content": b'{"images": [', "headers": JSON}),
    "json without images": (422, {"json": {"instances": [[[0]]]}}),
    "json text": (422, {"json": {"images": "../../etc/passwd"}}),
    "json nan": (422, {"content": b'{"images": [[[NaN]]]}', "headers": JSON}),
    "json infinite": (422, {"content": b'{"images": [[[1e999]]]}', "headers": JSON}),
    "json fraction": (422, {"json": {"images": [[[0.5]]]}}),
    "json negative": (422, {"json": {"images": [[[-1]]]}}),
    "json long number": (422, {"content": b'{"images": [[[' + b"9" * 4000 + b"]]]}", "headers": JSON}),
    "json very long number": (400, {"content": b'{"images": [[[' + b"9" * 9000 + b"]]]}", "headers": JSON}),
    "json ragged": (422, {"json": {"images": [[[0], [0, 1]]]}}),
    "json empty": (422, {"json": {"images": []}}),
    "json shape": (422, {"json": {"images": [[[[[0]]]]]}}),
    "json bool": (422, {"json": {"images": [[[True]]]}}),
    "npy nan": (422, {"content": npy(np.full((1, 2, 2), np.nan))}),
    "npy negative shape": (422, {"content": header_npy("(-1, 28, 28)")}),
    "npy huge shape": (422, {"content": header_npy("(1000000, 100000, 28)")}),
    "npy code": (422, {"content": header_npy("__import__('os').system('true')")}),
    "npy truncated": (422, {"content": npy(np.zeros((4, 4), np.uint8))[:-3]}),
    "npy objects": (422, {"content": b"\x93NUMPY\x01\x00" + b"\xff\xff"}),
    "many parts": (413, {"files": [("image", ("a.png", b"x")) for _ in range(10_000)]}),
    "many fields": (413, {"data": {f"f{i}": "x" for i in range(1000)}, "files": {"image": ("a.png", b"x")}}),
    "many images": (413, {"json": {"images": [[[0, 0], [0, 0]]] * 9}}),
    "fields only": (
        422,
        {
            "data": {"image": "x"},
            "files": {},
            "headers": {"content-type": "multipart/form-data; boundary=x"},
            "content": b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n--x--\r\n',
        },
    ),
    "no boundary": (400, {"content": b"x", "headers": {"content-type": "multipart/form-data"}}),
    "empty file": (422, {"files": {"image": ("<b>.png", b"")}}),
    "one of two": (422, {"files": [("image", ("a.png", png([[0]]))), ("image", ("b.png", b"x"))]}),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_refused_on_one_line(client: Client, case: str) -> None:
    status, options = WRONG[case]
    options = {
        key: value
        for key, value in options.items()
        if not (key in ("data", "files") and "content" in options)
    }
    answer = client.post(**options)
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    assert isinstance(detail, str)
    assert "\n" not in detail
    assert len(detail) < 400
    assert client.server.budget.used == 0
    assert client.server.batchers["digits"].num_reserved == 0
    assert client.post(json={"images": [[[0]]]}).status_code == 200


@pytest.mark.parametrize(
    "name", ["other", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "digits%00", "<script>", "a" * 5000]
)
def test_unknown_models_are_missing(client: Client, name: str) -> None:
    answer = client.post(f"/models/{name}/predict", content=b"x")
    assert answer.status_code in (404, 405)
    assert "<script>" not in answer.text
    assert "<script>" not in client("GET", "/metrics").text


@pytest.mark.parametrize("query", ["top_k=0", "top_k=x", "drawing=perhaps"])
def test_wrong_queries_are_refused(client: Client, query: str) -> None:
    assert client.post(f"/predict?{query}", content=png([[0]])).status_code == 422


def test_pages_of_other_sites_are_refused(client: Client) -> None:
    answer = client.post(content=png([[0]]), headers={"sec-fetch-site": "cross-site"})
    assert answer.status_code == 403


def test_hostile_requests_do_not_grow_the_memory(client: Client) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    bodies = [options for status, options in WRONG.values() if "content" in options]
    for _ in range(3):
        for options in bodies:
            client.post(content=options["content"], headers=options.get("headers"))
    before = resident()
    for _ in range(15):
        for options in bodies:
            client.post(content=options["content"], headers=options.get("headers"))
    assert resident() - before < 24 * 2**20


def test_slow_bodies_are_given_up(run: Path) -> None:
    client = Client(server_of(run, "timeout_s=0.2"))

    async def drip() -> Any:
        yield b"x"
        await asyncio.sleep(1)
        yield b"y"

    async def whole() -> httpx.Response:
        messages: list[dict[str, Any]] = []
        stream = drip()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": await anext(stream), "more_body": True}

        async def send(message: dict[str, Any]) -> None:
            messages.append(message)

        scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": []}
        scope |= {
            "http_version": "1.1",
            "scheme": "http",
            "raw_path": b"/predict",
            "root_path": "",
            "client": None,
        }
        await client.server.app(scope, receive, send)
        return httpx.Response(messages[0]["status"], headers=messages[0]["headers"])

    answer = client.loop.run_until_complete(whole())
    assert answer.status_code == 408
    assert answer.headers["connection"] == "close"
    assert client.server.budget.used == 0
    client.close()


# ---- batching


class SlowModel:
    """Network whose output is the first pixel; records the sizes of its batches."""

    def __init__(self, wait_s: float = 0.05) -> None:
        self.sizes: list[int] = []
        self.wait_s = wait_s

    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(self.wait_s)
        self.sizes.append(len(images))
        if (images == 213).any():
            raise FloatingPointError("213")
        return images.flatten(1)[:, :1].float()


async def _ask(batcher: Batcher, model: Any, *values: int) -> list[float]:
    batcher.reserve(len(values))
    try:
        outputs = await batcher.predict(model, torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1))
        return outputs.flatten().tolist()
    finally:
        batcher.release(len(values))


def _with_batcher(batcher_options: tuple[int, float, int], work: Any) -> Any:
    async def run() -> Any:
        batcher = Batcher(*batcher_options)
        task = asyncio.create_task(batcher.run())
        try:
            return await work(batcher)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    return asyncio.run(run())


def test_requests_that_wait_share_a_batch() -> None:
    model = SlowModel()

    async def work(batcher: Batcher) -> list[list[float]]:
        return await asyncio.gather(*(_ask(batcher, model, number, number + 100) for number in range(20)))

    answers = _with_batcher((8, 0.001, 100), work)
    assert answers == [[number, number + 100] for number in range(20)]
    assert sum(model.sizes) == 40
    assert max(model.sizes) == 8
    assert len(model.sizes) <= 7


def test_an_error_reaches_its_own_request_alone() -> None:
    model = SlowModel(0)

    async def work(batcher: Batcher) -> list[Any]:
        asked = (_ask(batcher, model, value) for value in (1, 213, 3))
        return await asyncio.gather(*asked, return_exceptions=True)

    first, second, third = _with_batcher((8, 0.001, 100), work)
    assert (first, third) == ([1], [3])
    assert isinstance(second, FloatingPointError)


def test_batches_hold_images_of_one_model_only() -> None:
    old, new = SlowModel(), SlowModel()

    async def work(batcher: Batcher) -> Any:
        return await asyncio.gather(*(_ask(batcher, (old, new)[number > 4], number) for number in range(10)))

    assert _with_batcher((8, 0.001, 100), work) == [[number] for number in range(10)]
    assert sum(old.sizes) == sum(new.sizes) == 5


def test_a_full_queue_refuses() -> None:
    model = SlowModel()

    async def work(batcher: Batcher) -> None:
        waiting = [asyncio.create_task(_ask(batcher, model, 1, 2)) for _ in range(2)]
        await asyncio.sleep(0.01)
        with pytest.raises(QueueFullError, match="try again in 1 s"):
            batcher.reserve(1)
        await asyncio.gather(*waiting)
        batcher.reserve(4)

    _with_batcher((1, 0.001, 4), work)


def test_a_full_queue_is_status_429(run: Path) -> None:
    client = Client(server_of(run, "max_queue=1", "max_batch=1", max_images=1))
    model = SlowModel(0.3)
    object.__setattr__(
        client.server.slots["digits"].model,
        "probabilities",
        lambda images: model.probabilities(images).expand(-1, 10).softmax(-1),
    )

    async def both() -> list[httpx.Response]:
        return await asyncio.gather(*(client.http.post("/predict", content=png([[0]])) for _ in range(3)))

    answers = client.loop.run_until_complete(both())
    assert sorted(answer.status_code for answer in answers) == [200, 429, 429]
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status_code == 429)
    client.close()


# ---- hot reload


def swap_weights(run: Path, scale: float) -> None:
    """Write a new best and last checkpoint whose network answers differently."""
    for name in ("best", "last"):
        file = run / "checkpoints" / f"{name}.ckpt"
        if file.exists():
            saved = checkpoint_files.read(file)
            saved["state_dict"] = {key: value * scale for key, value in saved["state_dict"].items()}
            checkpoint_files.write(file, lambda stream, saved=saved: checkpoint_files.save(saved, stream), 0)


def test_new_checkpoint_replaces_the_model(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    options = read_options(Options, [f"run={copy}"])
    slot = ModelSlot(find_sources(options)[0], options)
    before = slot.model
    assert not slot.refresh()
    assert slot.model is before
    swap_weights(copy, 0.5)
    assert slot.refresh()
    assert slot.model.version != before.version
    image = torch.full((1, 1, 28, 28), 100, dtype=torch.uint8)
    assert not torch.allclose(slot.model.probabilities(image), before.probabilities(image))
    kept = slot.model
    for file in (copy / "checkpoints").glob("*.ckpt"):
        file.write_bytes(b"damaged")
    assert not slot.refresh()
    assert slot.model is kept
    assert slot.num_failures == 1


def test_networks_with_nan_are_never_served(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    options = read_options(Options, [f"run={copy}"])
    slot = ModelSlot(find_sources(options)[0], options)
    swap_weights(copy, float("nan"))
    assert not slot.refresh()
    assert slot.num_failures == 1


def test_answers_are_of_exactly_one_model_during_a_reload(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    images = np.random.default_rng(3).integers(0, 256, (6, 28, 28), dtype=np.uint8).tolist()
    client = Client(server_of(copy, "reload_s=0.05", "max_batch=4"))
    seen: dict[str, list[float]] = {}

    async def ask_until(count: int) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while len(seen) < count and time.monotonic() < deadline:
            for answer in await asyncio.gather(
                *(client.http.post("/predict", json={"images": images}) for _ in range(4))
            ):
                assert answer.status_code == 200
                probabilities = [row["probability"] for row in answer.json()["predictions"]]
                expected = seen.setdefault(answer.json()["version"], probabilities)
                assert probabilities == pytest.approx(expected, rel=1e-4)
        assert len(seen) == count

    client.loop.run_until_complete(ask_until(1))
    for count, scale in ((2, 0.5), (3, 1.5)):
        swap_weights(copy, scale)
        client.loop.run_until_complete(ask_until(count))
    client.close()
    values = list(seen.values())
    assert all(not np.allclose(values[0], other, rtol=1e-3) for other in values[1:])


# ---- options


def test_names(run: Path, color_run: Path) -> None:
    def names(*runs: str) -> list[str]:
        return [source.name for source in find_sources(read_options(Options, [f"run={','.join(runs)}"]))]

    assert names(str(run), str(color_run)) == ["digits", "insects"]
    assert names(str(run), str(run)) == ["digits", "digits-2"]
    assert names(f"a={run}", f"b={run}") == ["a", "b"]
    with pytest.raises(InputError, match="a second model named a"):
        names(f"a={run}", f"a={color_run}")
    with pytest.raises(InputError, match="may have letters"):
        names(f"../x={run}")


def test_missing_export(run: Path) -> None:
    with pytest.raises(
        InputError, match=r"backend=onnx: .*model\.onnx does not exist; run python scripts/export"
    ):
        find_sources(read_options(Options, [f"run={run}", "backend=onnx"]))


def test_exported_network_answers_the_same(run: Path, files: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from project.inference.export.options import Options as Export
    from project.inference.export.options import main as export

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    export(read_options(Export, [f"run={copy}", "format=onnx", "benchmark_s=0", "check=32"]))
    sent = [("image", (file.name, file.read_bytes())) for file in files]
    answers = []
    for words in ((), ("backend=onnx",)):
        client = Client(server_of(copy, *words))
        answers.append([row["probability"] for row in client.post(files=sent).json()["predictions"]])
        client.close()
    assert answers[0] == pytest.approx(answers[1], rel=1e-3)


# ---- drawings


def drawn(ink: int, paper: int, box: tuple[int, int, int, int]) -> io.BytesIO:
    left, top, right, bottom = box
    pixels = np.full((200, 300), paper, dtype=np.uint8)
    pixels[top:bottom, left:right] = ink
    return io.BytesIO(png(pixels))


@pytest.mark.parametrize(("ink", "paper"), [(255, 0), (0, 255), (40, 210)])
@pytest.mark.parametrize("box", [(20, 20, 60, 180), (200, 100, 280, 110), (5, 5, 195, 195)])
def test_drawings_are_prepared_as_mnist(ink: int, paper: int, box: tuple[int, int, int, int]) -> None:
    image = prepare_drawing(drawn(ink, paper, box), (1, 28, 28), bright_ink=True)[0].numpy().astype(float)
    rows, columns = np.nonzero(image > 60)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == pytest.approx(20, abs=1)
    center = [(image.sum(axis=axis) * np.arange(28)).sum() / image.sum() for axis in (0, 1)]
    assert center == pytest.approx([13.5, 13.5], abs=0.6)
    assert image.max() == 255
    dark = prepare_drawing(drawn(ink, paper, box), (1, 28, 28), bright_ink=False)[0].numpy()
    assert (dark == 255 - image).all()


def test_an_empty_drawing_is_refused() -> None:
    with pytest.raises(EmptyDrawingError, match="nothing is drawn"):
        prepare_drawing(drawn(200, 200, (0, 0, 1, 1)), (1, 28, 28), bright_ink=True)


# ---- the command


def _steady(served: Served, answers: list[Any], stop: threading.Event) -> None:
    """Send requests over new connections until refused, as many clients do."""
    body = json.dumps({"images": [[[0, 255], [255, 0]]]})
    while not stop.is_set():
        try:
            answers.append(httpx.post(f"{served.url}/predict", content=body, headers=JSON, timeout=TIMEOUT_S))
        except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError) as error:
            answers.append(error)
            return


def test_sigterm_answers_accepted_requests(run: Path) -> None:
    with serving(run, "token=${oc.env:SECRET_WORD}", environment={"SECRET_WORD": "abc"}) as served:
        assert httpx.get(f"{served.url}/health").status_code == 401
        headers = {**JSON, "authorization": "Bearer abc"}
        body = json.dumps({"images": [[[0, 255], [255, 0]]]}).encode()
        port = int(served.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as client:
            head = f"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
            head += "".join(f"{key}: {value}\r\n" for key, value in headers.items())
            client.sendall(head.encode() + b"\r\n" + body[:5])
            time.sleep(0.5)  # the request is being read
            served.process.terminate()
            time.sleep(0.5)
            client.sendall(body[5:])
            client.settimeout(TIMEOUT_S)
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'"predictions"' in answer
        assert served.stop() == "stopped: 1 of 1 requests answered"


def test_sigterm_under_load_loses_no_request(run: Path) -> None:
    with serving(run) as served:
        answers: list[list[Any]] = [[] for _ in range(4)]
        stop = threading.Event()
        threads = [threading.Thread(target=_steady, args=(served, one, stop)) for one in answers]
        for thread in threads:
            thread.start()
        time.sleep(1.5)
        last = served.stop()
        stop.set()
        for thread in threads:
            thread.join(TIMEOUT_S)
        received = [answer for one in answers for answer in one if isinstance(answer, httpx.Response)]
        assert all(answer.status_code == 200 for answer in received)
        assert last == f"stopped: {len(received):,} of {len(received):,} requests answered"
        assert len(received) > 4
