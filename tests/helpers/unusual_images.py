"""A folder of images of all modes and names, and of files that are none."""

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


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = BytesIO()
    image.copy().save(stream, kind, **options)  # encoders leave their settings in an image
    return stream.getvalue()


def noise(mode: str, width: int = 13, height: int = 9) -> Image.Image:
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8))
    return image.convert(mode)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header says so, and that has no such pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def write(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def odd_images() -> dict[str, bytes]:
    """Name and content of images that can be read, each odd in its own way."""
    colour, gray = noise("RGB"), noise("L")
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    palette = noise("P")
    palette.info["transparency"] = bytes(range(256))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    return {
        "gray.png": encoded(gray, "png"),
        "gray alpha.png": encoded(gray.convert("LA"), "png"),
        "alpha.png": encoded(noise("RGBA"), "png"),
        "palette.png": encoded(palette, "png", transparency=bytes(range(256))),
        "palette.gif": encoded(noise("P"), "gif"),
        "bits.png": encoded(noise("1"), "png"),
        "16 bits.png": encoded(deep, "png"),
        "16 bits.tif": encoded(deep, "tiff"),
        "32 bits.tif": encoded(noise("I"), "tiff"),
        "floats.tif": encoded(Image.fromarray(np.asarray(gray).astype(np.float32) / 255), "tiff"),
        "cmyk.jpg": encoded(noise("CMYK"), "jpeg"),
        "ycbcr.jpg": encoded(colour, "jpeg", progressive=True),
        "rotated.jpg": encoded(colour, "jpeg", exif=rotated.tobytes()),
        "animated.gif": encoded(colour, "gif", save_all=True, append_images=[noise("L"), noise("1")]),
        "animated.webp": encoded(colour, "webp", save_all=True, append_images=[noise("RGB")]),
        "pages.tif": encoded(colour, "tiff", save_all=True, append_images=[noise("L")]),
        "UPPER.BMP": encoded(colour, "bmp"),
        "plain.ppm": encoded(colour, "ppm"),
        "icon.ico": encoded(noise("RGBA", 16, 16), "ico"),
        "no suffix": encoded(colour, "png"),
        "in truth a jpeg.png": encoded(colour, "jpeg"),
        "pixel.png": encoded(noise("RGB", 1, 1), "png"),
        "line.png": encoded(noise("RGB", 700, 1), "png"),
        "large.jpg": encoded(noise("RGB", 1500, 1100), "jpeg"),
        "comma, \"quote\" and 'quote'.png": encoded(colour, "png"),
        "line\nend\tand \x1b[31mcolour.png": encoded(colour, "png"),
        "図版 ｆｕｌｌ — é.png": encoded(colour, "png"),
        os.fsdecode(b"latin-\xe9.png"): encoded(colour, "png"),
        "=1+1.png": encoded(colour, "png"),
        "deep/er/and [brackets]/*.png": encoded(colour, "png"),
    }


def bad_files() -> dict[str, Callable[[Path], object]]:
    """Name of each kind of file that is no image, and what makes one."""
    png, jpeg, gif = (encoded(noise("RGB", 60, 60), kind) for kind in ("png", "jpeg", "gif"))
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    return {
        "truncated.jpg": write(jpeg[: len(jpeg) // 2]),
        "truncated.png": write(png[: len(png) // 2]),
        "truncated.gif": write(gif[:20]),
        "bits turned.png": write(png[:200] + bytes(byte ^ 0x55 for byte in png[200:400]) + png[400:]),
        "head.jpg": write(jpeg[:4]),
        "empty.png": write(b""),
        "zeros.bmp": write(bytes(1000)),
        "text.png": write(b"no image\n"),
        "page.jpg": write(b"<!DOCTYPE html><html><body>404 Not Found</body></html>"),
        "paper.jpg": write(b"%PDF-1.4\n1 0 obj\n<< >>\nendobj\ntrailer\n<< >>\n%%EOF\n"),
        "program.eps": write(postscript),
        "notes.txt": write(b"cats are in photos/cat\n"),
        "labels.csv": write(b"file,class\n1.jpg,cat\n"),
        "nothing wide.png": write(png_of_size(0, 10)),
        "bomb.png": write(png_of_size(60_000, 60_000)),
        "folder.png": Path.mkdir,
        "link to nothing.jpg": lambda path: path.symlink_to("nowhere.jpg"),
        "link to itself.jpg": lambda path: path.symlink_to(path.name),
        "pipe.jpg": os.mkfifo,
        "socket.png": _bind,
    }


def _bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # an absolute path may be too long


def fill(folder: Path, good: int, bad: int) -> tuple[set[str], set[str]]:
    """Write so many images and so many files that are none; return their paths."""
    odd = odd_images()
    plain = {f"{number:04}.jpg": encoded(noise("RGB", 32, 32), "jpeg") for number in range(good - len(odd))}
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
