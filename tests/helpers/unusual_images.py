"""Folders of images of all modes with unusual names, and of files that are not images."""

import itertools
import os
import socket
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


def encode(image: Image.Image, kind: str, **options) -> bytes:
    stream = BytesIO()
    image.copy().save(stream, kind, **options)  # encoders leave their settings in an image
    return stream.getvalue()


def noise_image(mode: str, width: int = 13, height: int = 9) -> Image.Image:
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8))
    return image.convert(mode)


def png_of_size(width: int, height: int) -> bytes:
    """Return a PNG whose header claims this size, without the pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def writer_of(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def unusual_images() -> dict[str, bytes]:
    """Return name and content of readable images, each unusual in its own way."""
    color, gray = noise_image("RGB"), noise_image("L")
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    palette = noise_image("P")
    palette.info["transparency"] = bytes(range(256))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    return {
        "gray.png": encode(gray, "png"),
        "gray alpha.png": encode(gray.convert("LA"), "png"),
        "alpha.png": encode(noise_image("RGBA"), "png"),
        "palette.png": encode(palette, "png", transparency=bytes(range(256))),
        "palette.gif": encode(noise_image("P"), "gif"),
        "bits.png": encode(noise_image("1"), "png"),
        "16 bits.png": encode(deep, "png"),
        "16 bits.tif": encode(deep, "tiff"),
        "32 bits.tif": encode(noise_image("I"), "tiff"),
        "floats.tif": encode(Image.fromarray(np.asarray(gray).astype(np.float32) / 255), "tiff"),
        "cmyk.jpg": encode(noise_image("CMYK"), "jpeg"),
        "ycbcr.jpg": encode(color, "jpeg", progressive=True),
        "rotated.jpg": encode(color, "jpeg", exif=rotated.tobytes()),
        "animated.gif": encode(
            color, "gif", save_all=True, append_images=[noise_image("L"), noise_image("1")]
        ),
        "animated.webp": encode(color, "webp", save_all=True, append_images=[noise_image("RGB")]),
        "pages.tif": encode(color, "tiff", save_all=True, append_images=[noise_image("L")]),
        "UPPER.BMP": encode(color, "bmp"),
        "plain.ppm": encode(color, "ppm"),
        "icon.ico": encode(noise_image("RGBA", 16, 16), "ico"),
        "no suffix": encode(color, "png"),
        "in truth a jpeg.png": encode(color, "jpeg"),
        "pixel.png": encode(noise_image("RGB", 1, 1), "png"),
        "line.png": encode(noise_image("RGB", 700, 1), "png"),
        "large.jpg": encode(noise_image("RGB", 1500, 1100), "jpeg"),
        "comma, \"quote\" and 'quote'.png": encode(color, "png"),
        "line\nend\tand \x1b[31mcolor.png": encode(color, "png"),
        "図版 ｆｕｌｌ — é.png": encode(color, "png"),
        os.fsdecode(b"latin-\xe9.png"): encode(color, "png"),
        "=1+1.png": encode(color, "png"),
        "deep/er/and [brackets]/*.png": encode(color, "png"),
    }


def bad_files() -> dict[str, Callable[[Path], object]]:
    """Return the names of files that are not images, with a function that creates each of them."""
    png, jpeg, gif = (encode(noise_image("RGB", 60, 60), kind) for kind in ("png", "jpeg", "gif"))
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    return {
        "truncated.jpg": writer_of(jpeg[: len(jpeg) // 2]),
        "truncated.png": writer_of(png[: len(png) // 2]),
        "truncated.gif": writer_of(gif[:20]),
        "bits turned.png": writer_of(png[:200] + bytes(byte ^ 0x55 for byte in png[200:400]) + png[400:]),
        "head.jpg": writer_of(jpeg[:4]),
        "empty.png": writer_of(b""),
        "zeros.bmp": writer_of(bytes(1000)),
        "text.png": writer_of(b"no image\n"),
        "page.jpg": writer_of(b"<!DOCTYPE html><html><body>404 Not Found</body></html>"),
        "paper.jpg": writer_of(b"%PDF-1.4\n1 0 obj\n<< >>\nendobj\ntrailer\n<< >>\n%%EOF\n"),
        "program.eps": writer_of(postscript),
        "notes.txt": writer_of(b"cats are in photos/cat\n"),
        "labels.csv": writer_of(b"file,class\n1.jpg,cat\n"),
        "nothing wide.png": writer_of(png_of_size(0, 10)),
        "bomb.png": writer_of(png_of_size(60_000, 60_000)),
        "folder.png": Path.mkdir,
        "link to nothing.jpg": lambda path: path.symlink_to("nowhere.jpg"),
        "link to itself.jpg": lambda path: path.symlink_to(path.name),
        "pipe.jpg": os.mkfifo,
        "socket.png": _make_socket,
    }


def _make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # an absolute path may be too long


def write_image_folder(folder: Path, good: int, bad: int) -> tuple[set[str], set[str]]:
    """Write `good` images and `bad` files that are not images; return the paths of both."""
    odd = unusual_images()
    plain = {
        f"{number:04}.jpg": encode(noise_image("RGB", 32, 32), "jpeg") for number in range(good - len(odd))
    }
    images = dict(itertools.islice((odd | plain).items(), good))
    for name, data in images.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    none: set[str] = set()
    kinds = bad_files()
    for number, (name, make) in zip(range(bad), itertools.cycle(kinds.items()), strict=False):
        path = folder / f"bad {number // len(kinds)}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)
        none.add(str(path))
    return {str(folder / name) for name in images}, none
