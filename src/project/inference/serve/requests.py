"""Bodies of requests: image files and arrays, within limits, to the network's input images."""

import asyncio
import io
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect, Request
from torch import Tensor

from project.datamodules.loading.image_decoder import decode_image
from project.datamodules.storage.image_files import UNDECODABLE_FORMATS
from project.errors import one_line
from project.inference.predict.predictions import decoding_problem
from project.inference.serve import drawing
from project.inference.serve.models import ServedModel
from project.runtime.text import printable

NPY = b"\x93NUMPY"
JSON_TYPES = ("application/json", "text/json")
NPY_TYPES = ("application/x-npy", "application/npy")
MULTIPART = "multipart/form-data"
MAX_FIELDS = 16
MAX_NAME = 200
"""Characters of a file name that an answer repeats."""
KINDS = {"f": "fractions", "b": "true and false", "U": "text", "O": "of several kinds"}
"""Descriptions of the values of an array by NumPy's kinds."""
EXPECTED = "an image file, multipart/form-data, JSON or .npy"


class RequestError(Exception):
    """Refusal of a request.

    Args:
        status: HTTP status, 400 to 499.
        problem: reason and remedy, on one line.
    """

    def __init__(self, status: int, problem: str) -> None:
        super().__init__(problem)
        self.status = status


class Upload(NamedTuple):
    """Encoded image file with its name [none], or array (H, W) or (H, W, 3) uint8."""

    name: str | None
    content: bytes | NDArray[np.uint8]


class ByteBudget:
    """Limit of the bytes of all requests in memory.

    Args:
        most: limit [bytes].
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.used = 0

    def take(self, count: int) -> bool:
        """Take bytes; return false if there are not enough."""
        if self.used + count > self.most:
            return False
        self.used += count
        return True


async def read_body(request: Request, max_bytes: int, timeout_s: float, budget: ByteBudget) -> bytes:
    """Return the body of a request; the caller returns its bytes to the budget.

    Raises:
        RequestError: the body is empty, too large, too slow, or ends early.
    """
    too_large = RequestError(
        413, f"the request is larger than {max_bytes:,} bytes; send fewer or smaller images"
    )
    given = request.headers.get("content-length", "")
    if given.isdigit() and int(given) > max_bytes:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                if size + len(chunk) > max_bytes:
                    raise too_large
                if not budget.take(len(chunk)):
                    raise RequestError(429, "the server is busy with other requests; try again")
                size += len(chunk)
                chunks.append(chunk)
        if not size:
            raise RequestError(400, f"the body is empty (expected {EXPECTED})")
    except BaseException as error:
        budget.used -= size
        if isinstance(error, TimeoutError):
            raise RequestError(408, f"the request did not arrive within {timeout_s:g} s") from error
        if isinstance(error, ClientDisconnect):
            raise RequestError(400, "the request ended early") from error
        raise
    return b"".join(chunks)


async def parse(body: bytes, headers: Mapping[str, str], max_images: int) -> list[Upload]:
    """Return the uploads in a body.

    Raises:
        RequestError: the body is none of the accepted types, or has no image or too many.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == MULTIPART:
        uploads = await _parse_multipart(body, headers, max_images)
    elif kind in JSON_TYPES:
        uploads = await asyncio.to_thread(_parse_json, body, max_images)
    elif kind in NPY_TYPES or body.startswith(NPY):
        uploads = _split(_read_npy(body), max_images)
    elif kind in ("", "application/octet-stream", "application/x-www-form-urlencoded") or kind.startswith(
        "image/"
    ):
        uploads = [Upload(None, body)]  # curl --data-binary sends files as a form unless told otherwise
    else:
        raise RequestError(415, f"content-type: {printable(kind[:80])} is not accepted (expected {EXPECTED})")
    if not uploads:
        raise RequestError(422, "the request has no image; send one or more")
    return uploads


async def _parse_multipart(body: bytes, headers: Mapping[str, str], max_images: int) -> list[Upload]:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {"type": "http", "headers": [(b"content-type", headers["content-type"].encode("latin-1"))]}
    uploads: list[Upload] = []
    try:
        async with Request(scope, receive).form(max_files=max_images, max_fields=MAX_FIELDS) as form:
            for name, value in form.multi_items():
                if not isinstance(value, UploadFile):
                    raise RequestError(422, f"{printable(name[:80])}: is not a file; send images as files")
                content = await value.read()
                given = printable((value.filename or "")[:MAX_NAME]) or None
                if not content:
                    raise RequestError(422, f"{given or 'image'}: empty; send an image")
                if content.startswith(NPY):
                    uploads += _split(_read_npy(content), max_images)
                else:
                    uploads.append(Upload(given, content))
    except RequestError:
        raise
    except Exception as error:  # starlette raises different classes with and without an application
        reason = one_line(error) if str(error) else "damaged"
        status = 413 if "Too many" in reason or "exceeded" in reason else 400
        raise RequestError(status, f"multipart: {reason}") from error
    if len(uploads) > max_images:
        raise RequestError(413, _too_many(len(uploads), max_images))
    return uploads


def _parse_json(body: bytes, max_images: int) -> list[Upload]:
    def refuse(word: str) -> Any:
        raise RequestError(422, f"images: contain {word} (expected whole numbers from 0 to 255)")

    try:
        given = json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON ({one_line(error)})") from error
    if not isinstance(given, dict) or set(given) != {"images"}:
        raise RequestError(422, 'the JSON has unexpected keys (expected {"images": [image, …]})')
    try:
        # Without a type, long whole numbers and ragged lists become objects, which `_as_pixels` refuses.
        array = np.array(given["images"])
    except (ValueError, OverflowError) as error:
        raise RequestError(422, "images: differ in shape, or are not arrays of numbers") from error
    return _split(array, max_images)


def _read_npy(content: bytes) -> NDArray[Any]:
    """Return the array of a .npy file, without the copies and the code that NumPy's reader allows."""
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[
            version
        ]
        shape, is_fortran, dtype = read(stream)
        if dtype.hasobject or dtype.kind not in "uifb":
            raise RequestError(422, f"npy: values are {dtype} (expected uint8)")
        if (
            any(side < 0 for side in shape)
            or math.prod(shape) * dtype.itemsize != len(content) - stream.tell()
        ):
            raise RequestError(
                422, f"npy: the file does not hold an array of shape {shape} as its header says"
            )
        array = np.frombuffer(content, dtype, offset=stream.tell())
        return array.reshape(shape, order="F" if is_fortran else "C")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, UserWarning) as error:
        raise RequestError(422, f"npy: damaged ({one_line(error)[:200]})") from error


def _split(array: NDArray[Any], max_images: int) -> list[Upload]:
    """Return the images of an array (N, H, W), (N, H, W, C) or (N, C, H, W), or of a single one."""
    pixels = _as_pixels(array)
    if pixels.ndim == 2 or (pixels.ndim == 3 and (pixels.shape[-1] in (1, 3) or len(pixels) == 1)):
        pixels = pixels[None] if pixels.ndim == 2 or len(pixels) > 1 else pixels
    if pixels.ndim not in (3, 4) or 0 in pixels.shape:
        raise RequestError(
            422,
            f"images: have shape {list(array.shape)} (expected [images, height, width], [images, channels, "
            "height, width] or [images, height, width, channels])",
        )
    if len(pixels) > max_images:
        raise RequestError(413, _too_many(len(pixels), max_images))
    if pixels.ndim == 4:
        if pixels.shape[1] in (1, 3) and pixels.shape[3] not in (1, 3):
            pixels = pixels.transpose(0, 2, 3, 1)  # N, H, W, C
        if pixels.shape[3] not in (1, 3):
            raise RequestError(422, f"images: have shape {list(array.shape)} (expected 1 or 3 channels)")
        pixels = pixels[..., 0] if pixels.shape[3] == 1 else pixels
    return [Upload(None, image) for image in pixels]


def _as_pixels(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "ui":
        raise RequestError(
            422,
            f"images: values are {array.dtype} (expected whole numbers from 0 to 255); multiply and round",
        )
    if not 0 <= int(array.min()) <= int(array.max()) <= 255:
        raise RequestError(422, f"images: values from {array.min()} to {array.max()} (expected 0 to 255)")
    return array.astype(np.uint8)


def _too_many(count: int, most: int) -> str:
    return f"{count:,} images in a request (expected at most {most:,}); send several requests"


def decode(uploads: list[Upload], model: ServedModel, max_pixels: int, *, is_drawing: bool = False) -> Tensor:
    """Decode uploads as `predict` decodes files, to images (N, C, H, W) uint8.

    Args:
        uploads: at least one.
        model: the network that the images are for.
        max_pixels: limit of the pixels of an image.
        is_drawing: prepare the image as handwriting (see `drawing`).

    Raises:
        RequestError: an upload is damaged, no image, or too large.
    """
    white_level = model.trained.config["data"].get("white_level")
    images = []
    for number, upload in enumerate(uploads, start=1):
        shown = upload.name or f"image {number}"
        stream = io.BytesIO(_encode(upload.content))
        _check_header(stream, shown, max_pixels)
        stream.seek(0)
        try:
            if is_drawing:
                images.append(
                    drawing.prepare_drawing(
                        stream,
                        model.input_shape,
                        bright_ink=model.trained.mean[0] < 0.5,
                        box_fraction=model.box_fraction,
                        white_level=white_level,
                    )
                )
            else:
                images.append(
                    decode_image(stream, model.input_shape, may_scale=True, white_level=white_level)
                )
        except drawing.EmptyDrawingError as error:
            raise RequestError(422, f"{shown}: {error}") from error
        except Exception as error:  # decoders raise anything on damaged files
            raise RequestError(422, f"{shown}: {decoding_problem(error.__cause__ or error)}") from error
    return torch.stack(images)


def _encode(content: bytes | NDArray[np.uint8]) -> bytes:
    """Return pixels as an uncompressed file, so that arrays take the way of files."""
    if isinstance(content, bytes):
        return content
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(content)).save(stream, "PPM")
    return stream.getvalue()


def _check_header(stream: io.BytesIO, shown: str, max_pixels: int) -> None:
    try:
        with Image.open(stream) as image:
            pixels, kind = image.width * image.height, image.format
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RequestError(413, f"{shown}: too large (expected at most {max_pixels:,} pixels)") from error
    except Exception as error:  # Pillow's plugins raise anything on damaged files
        raise RequestError(422, f"{shown}: {decoding_problem(error)}") from error
    if kind in UNDECODABLE_FORMATS:
        raise RequestError(422, f"{shown}: {kind} is not accepted; send PNG, JPEG, WebP or TIFF")
    if pixels > max_pixels:
        raise RequestError(413, f"{shown}: {pixels:,} pixels (expected at most {max_pixels:,}); shrink it")
