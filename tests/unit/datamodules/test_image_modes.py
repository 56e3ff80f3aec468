"""The decoder's 8-bit pixels equal direct arithmetic on the values in a file, for every image mode."""

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from project.datamodules.loading.image_decoder import decode_image
from project.datamodules.storage.image_files import SkippedFile
from project.errors import DataError, InputError
from project.inference.predict.predictions import decode_files

GRAY = np.array([[0, 1, 64, 100], [127, 128, 200, 255]], dtype=np.uint8)
COLOR = np.stack([GRAY, GRAY[::-1], GRAY[:, ::-1]], axis=2)
ALPHA = np.array([[255, 255, 0, 128], [64, 255, 200, 0]], dtype=np.uint8)


def decoded(file: Path, channels: int = 1, **options) -> np.ndarray:
    """Return the decoded pixels (H, W), or (H, W, 3)."""
    with Image.open(file) as image:
        shape = (channels, image.height, image.width)
    pixels = decode_image(file, shape, may_scale=False, **options).numpy()
    return pixels[0] if channels == 1 else pixels.transpose(1, 2, 0)


def luma(color: np.ndarray) -> np.ndarray:
    return np.asarray(color, dtype=np.float64) @ [0.299, 0.587, 0.114]


def on_white(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha / 255
    return values * share + 255 * (1 - share)


def write_tiff(
    file: Path, values: np.ndarray, *, photometric: int = 1, bits: int | None = None, order: str = "<"
) -> Path:
    """Write a TIFF file with one strip of values (H, W) of any type, or of packed 12-bit values."""
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    height, width = values.shape
    if bits == 12:
        text = "".join(f"{value:012b}" for value in values.flatten())
        data = int(text, 2).to_bytes(len(text) // 8)
    else:
        bits = 8 * values.itemsize
        data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 200, 277: 1, 278: height}
    tags |= {279: len(data), 339: kind}
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    short = f"{order}HHIHH"
    head += b"".join(struct.pack(short, tag, 3, 1, value, 0) for tag, value in tags.items()) + bytes(4)
    file.write_bytes(head.ljust(200, b"\0") + data)
    return file


def write_png(file: Path, depth: int, kind: int, rows: Sequence[bytes], clear: bytes = b"") -> Path:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    width = 8 * len(rows[0]) // (depth * {0: 1, 2: 3, 4: 2}[kind])
    data = chunk(b"IHDR", struct.pack(">2I5B", width, len(rows), depth, kind, 0, 0, 0))
    data += chunk(b"tRNS", clear) if clear else b""
    data += chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return file


DEEP = np.array([[0, 128, 129, 1000], [32767, 32768, 65407, 65535]], dtype=np.uint16)


@pytest.mark.parametrize(("order", "photometric"), [("<", 1), (">", 1), ("<", 0)])
def test_16_bits_are_scaled_in_either_order_and_direction(
    tmp_path: Path, order: str, photometric: int
) -> None:
    found = decoded(write_tiff(tmp_path / "1.tif", DEEP, photometric=photometric, order=order))
    wanted = (DEEP.astype(int) + 128) // 257
    assert np.array_equal(found, 255 - wanted if photometric == 0 else wanted)


def test_16_bits_are_the_same_in_every_format(tmp_path: Path) -> None:
    files = [tmp_path / f"1.{suffix}" for suffix in ("png", "pgm", "tif", "jp2")]
    for file in files:
        options = {"irreversible": False} if file.suffix == ".jp2" else {}
        Image.fromarray(DEEP).save(file, **options)
        assert np.array_equal(decoded(file), (DEEP.astype(int) + 128) // 257), file.name


def test_a_depth_that_the_file_states_is_its_white(tmp_path: Path) -> None:
    values = np.array([[0, 1, 9, 2047, 2048, 4095]], dtype=np.uint16)
    wanted = np.rint(values / 4095 * 255)
    assert np.array_equal(decoded(write_tiff(tmp_path / "1.tif", values, bits=12)), wanted)
    head = b"P5 6 1 4095\n"
    (tmp_path / "1.pgm").write_bytes(head + values.astype(">u2").tobytes())
    assert np.array_equal(decoded(tmp_path / "1.pgm"), wanted)


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "u4"])
def test_integers_without_a_white_of_their_own_are_8_bits_or_refused(tmp_path: Path, dtype: str) -> None:
    values = GRAY.clip(0, 127).astype(dtype)
    assert np.array_equal(decoded(write_tiff(tmp_path / "1.tif", values)), values)
    if dtype != "i1":
        file = write_tiff(tmp_path / "2.tif", np.array([[0, 256]], dtype=dtype))
        with pytest.raises(InputError, match=r"data\.white_level=null: .*2\.tif has values from 0 to 256 \("):
            decoded(file)
        assert np.array_equal(decoded(file, white_level=256), [[0, 255]])
    if dtype != "u4":
        file = write_tiff(tmp_path / "3.tif", np.array([[-1, 100]], dtype=dtype))
        with pytest.raises(InputError, match=r"3\.tif has values from -1 to 100 \(int"):
            decoded(file)


def test_all_32_bits_can_be_used(tmp_path: Path) -> None:
    values = np.array([[0, 2**31, 2**32 - 1]], dtype=np.uint32)
    found = decoded(write_tiff(tmp_path / "1.tif", values), white_level=2**32 - 1)
    assert np.array_equal(found, [[0, 128, 255]])


def test_floats_are_scaled_alike_in_all_files(tmp_path: Path) -> None:
    shares = (GRAY / 255).astype(np.float32)
    for factor in (1, np.float32(0.5)):  # a dark image stays dark
        found = decoded(write_tiff(tmp_path / "1.tif", shares * factor))
        assert np.array_equal(found, np.rint(shares.astype(float) * float(factor) * 255))
    file = write_tiff(tmp_path / "2.tif", GRAY.astype(np.float32))
    with pytest.raises(InputError, match=r"2\.tif has values from 0 to 255 \(float32; expected 0 to 1\)"):
        decoded(file)
    assert np.array_equal(decoded(file, white_level=255), GRAY)
    assert np.array_equal(decoded(file, 3, white_level=255), np.stack([GRAY] * 3, axis=2))
    with pytest.raises(InputError, match=r"data\.white_level=100: .*2\.tif has values from 0 to 255"):
        decoded(file, white_level=100)
    (one,) = decode_files([str(file)], (1, 2, 4), ahead_by=1, num_threads=1)
    assert one == SkippedFile(str(file), "values from 0 to 255 (float32; expected 0 to 1)")
    (one,) = decode_files([str(file)], (1, 2, 4), ahead_by=1, num_threads=1, white_level=255)
    assert not isinstance(one, SkippedFile)
    assert torch.equal(one.image, torch.from_numpy(GRAY)[None])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_floats_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    file = write_tiff(tmp_path / "1.tif", np.array([[0.5, value]], dtype=np.float32))
    with pytest.raises(DataError, match=r"1\.tif is damaged or not an image \(values are NaN or infinite"):
        decoded(file)


PALETTE = np.array([[10, 200, 30], [40, 50, 250], [70, 80, 90], [255, 0, 3]], dtype=np.uint8)
INDICES = np.array([[0, 1, 2, 3], [3, 2, 1, 0]], dtype=np.uint8)


def image_of(mode: str) -> tuple[Image.Image, np.ndarray]:
    """Return an image, and its colors (H, W, 3) on a white background."""
    gray = np.stack([GRAY] * 3, axis=2).astype(float)
    alpha = ALPHA[..., None]
    if mode == "1":
        return Image.fromarray(GRAY > 127), np.where(gray > 127, 255.0, 0.0)
    if mode == "L":
        return Image.fromarray(GRAY), gray
    if mode in ("LA", "La"):
        pair = Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(ALPHA)])
        return pair.convert(mode), on_white(gray, alpha)
    if mode.startswith("P"):
        image = Image.fromarray(INDICES, "P")
        image.putpalette(PALETTE.tobytes())
        colors = PALETTE[INDICES].astype(float)
        if mode == "P":
            return image, colors
        if mode == "PA":
            image = image.convert("PA")
            image.putalpha(Image.fromarray(ALPHA))
            return image, on_white(colors, alpha)
        clear = np.array([0, 255, 128, 30], dtype=np.uint8)
        image.info["transparency"] = clear.tobytes()
        return image, on_white(colors, clear[INDICES][..., None])
    if mode in ("RGBA", "RGBa"):
        image = Image.fromarray(np.concatenate([COLOR, alpha], axis=2))
        return image.convert(mode), on_white(COLOR.astype(float), alpha)
    if mode == "CMYK":
        inks = np.concatenate([COLOR, GRAY[..., None]], axis=2)
        colors = (255 - COLOR.astype(float)) * (255 - GRAY[..., None].astype(float)) / 255
        return Image.frombytes("CMYK", (4, 2), inks.tobytes()), colors
    return Image.fromarray(COLOR).convert(mode), COLOR.astype(float)


MODES = ["1", "L", "LA", "La", "P", "P transparent", "PA", "RGB", "RGBX", "RGBA", "RGBa"]
MODES += ["CMYK", "YCbCr", "HSV"]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_pixels_are_the_colors_that_the_mode_stands_for(
    monkeypatch: pytest.MonkeyPatch, mode: str, channels: int
) -> None:
    """Uses images in memory: few file formats support some of the modes."""
    image, colors = image_of(mode)
    monkeypatch.setattr(Image, "open", lambda file: image)
    found = decoded(Path("1"), channels)
    # YCbCr and HSV have rounded, and premultiplied values of little alpha are few.
    tolerance = {"YCbCr": 3, "HSV": 5, "La": 3, "RGBa": 3}.get(mode, 1.01)
    assert np.abs(found - (colors if channels == 3 else luma(colors))).max() <= tolerance


def srgb_of_lab(lab: np.ndarray) -> np.ndarray:
    """Convert CIELAB (D50) to sRGB (…, 3), 0 to 255 (IEC 61966-2-1, Bradford adaptation)."""
    bright = (lab[..., 0] + 16) / 116
    cubes = np.stack([bright + lab[..., 1] / 500, bright, bright - lab[..., 2] / 200], axis=-1)
    xyz = np.where(cubes > 6 / 29, cubes**3, 3 * (6 / 29) ** 2 * (cubes - 4 / 29)) * [0.9642, 1, 0.8249]
    to_rgb = [[3.1339, -1.6169, -0.4906], [-0.9788, 1.9161, 0.0335], [0.0719, -0.2290, 1.4052]]
    linear = (xyz @ np.array(to_rgb).T).clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("channels", [1, 3])
def test_lab_is_converted_as_it_is_defined(tmp_path: Path, channels: int) -> None:
    lab = np.array([[[0, 0, 0], [50, 20, -30], [80, -25, 25]], [[100, 0, 0], [50, 0, 0], [60, 30, 20]]])
    in_file = np.rint(lab * [2.55, 1, 1]).astype(int) % 256  # two's complement
    Image.frombytes("LAB", (3, 2), in_file.astype(np.uint8).tobytes()).save(tmp_path / "1.tif")
    wanted = srgb_of_lab(lab)
    found = decoded(tmp_path / "1.tif", channels)
    assert np.abs(found - (wanted if channels == 3 else luma(wanted))).max() <= 2


def test_a_cmyk_jpeg_is_inverted_as_adobe_writes_it(tmp_path: Path) -> None:
    inks = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan: red
    stream = io.BytesIO()
    inks.save(stream, "jpeg", quality=100)
    (tmp_path / "1.jpg").write_bytes(stream.getvalue())
    assert b"Adobe" in stream.getvalue()
    assert np.abs(decoded(tmp_path / "1.jpg", 3).reshape(-1, 3) - [255.0, 0, 0]).max() <= 2


def test_color_of_16_bits_is_read_by_its_upper_8(tmp_path: Path) -> None:
    values = np.array([[40000, 300, 65535], [1, 2, 3]], dtype=">u2")
    plain = write_png(tmp_path / "1.png", 16, 2, [values.tobytes()])
    assert np.array_equal(decoded(plain, 3)[0], values >> 8)
    assert np.abs(decoded(plain, 3)[0] - values.astype(float) / 257).max() < 1
    clear = write_png(tmp_path / "2.png", 16, 2, [values.tobytes()], clear=values[0].tobytes())
    assert np.array_equal(decoded(clear, 3)[0], [[255] * 3, [0] * 3])


@pytest.mark.parametrize(
    ("depth", "row", "clear", "wanted"),
    [
        (1, b"\x40", 1, [0, 255, 0, 0, 0, 0, 0, 0]),
        (1, b"\x40", 0, [255] * 8),
        (2, b"\xd0", 3, [255, 85, 0, 0]),
        (2, b"\xd0", 1, [255, 255, 0, 0]),
        (4, b"\x51", 5, [255, 17]),
        (8, b"\x05\x07", 5, [255, 7]),
        (16, struct.pack(">2H", 300, 2570), 300, [255, 10]),
    ],
)
def test_the_gray_value_that_is_transparent_is_white(
    tmp_path: Path, depth: int, row: bytes, clear: int, wanted: list[int]
) -> None:
    file = write_png(tmp_path / "1.png", depth, 0, [row], clear=struct.pack(">H", clear))
    assert decoded(file).tolist() == [wanted]


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    ("shape", "is_scaled_by_the_decoder"), [((30, 40), True), ((60, 20), True), ((200, 150), False)]
)
def test_a_large_jpeg_is_scaled_by_its_decoder(
    tmp_path: Path, shape: tuple[int, int], orientation: int, *, is_scaled_by_the_decoder: bool
) -> None:
    draws = np.random.default_rng(0)
    coarse = Image.fromarray(draws.integers(0, 256, (15, 20, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    coarse.resize((400, 300), Image.Resampling.BICUBIC).save(tmp_path / "photo.jpg", quality=95, exif=exif)
    with Image.open(tmp_path / "photo.jpg") as opened:
        upright = ImageOps.exif_transpose(opened)
    wanted = np.asarray(upright.resize(shape[::-1], Image.Resampling.BILINEAR), dtype=float)
    found = decode_image(tmp_path / "photo.jpg", (3, *shape), may_scale=True).permute(1, 2, 0).numpy()
    difference = np.abs(found - wanted)
    assert difference.mean() < 0.5
    assert difference.max() <= 3
    assert (difference.max() > 0) == is_scaled_by_the_decoder
