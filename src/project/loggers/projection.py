"""Points with thumbnails for TensorBoard's Projector, as files in the run folder."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from project.runtime.files import replace_text

if TYPE_CHECKING:
    import PIL.Image

FOLDER = "projector"
CONFIG = "projector_config.pbtxt"
LARGEST_SPRITE = 4096
"""Side of the picture that holds all thumbnails, pixels; WebGL takes no more everywhere."""
THUMBNAIL = 64
"""Largest side of a thumbnail, pixels."""
MOST_DIMENSIONS = 256
"""Of points in the file; wider ones are projected."""


def write_projection(
    folder: Path,
    name: str,
    points: NDArray[np.float32],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    images: Any,
) -> None:
    """Write points, what is known of each, and a thumbnail of each. The file that names the others is
    written last: what is cut short is not seen.

    As text, although the page takes bytes too: it knows bytes only by their not being UTF-8.

    Args:
        folder: of the run.
        name: of the points.
        points: (N, D); see `narrowed` for large D.
        columns: names of what is known.
        rows: N of them.
        images: (N, C, H, W) uint8 with 1 or 3 channels.

    Raises:
        OSError: there is no room, or no permission.
    """
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    points = narrowed(points)
    line = "\t".join(["%.4g"] * points.shape[1])
    lines = (line % tuple(point) for point in points.tolist())
    replace_text(place / "points.tsv", "\n".join(lines) + "\n", durable=False)
    # Of one column the page wants no head.
    head = [columns] if len(columns) > 1 else []
    table = "\n".join("\t".join(_one_line(cell) for cell in row) for row in [*head, *rows])
    replace_text(place / "points_known.tsv", table + "\n", durable=False)
    side = _write_sprite(place / "points.png", thumbnails(images))
    config = f"""embeddings {{
  tensor_name: "{name}"
  tensor_path: "{FOLDER}/points.tsv"
  metadata_path: "{FOLDER}/points_known.tsv"
  sprite {{
    image_path: "{FOLDER}/points.png"
    single_image_dim: {side[0]}
    single_image_dim: {side[1]}
  }}
}}
"""
    replace_text(folder / CONFIG, config, durable=False)


def narrowed(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Points (N, D) of at most `MOST_DIMENSIONS`: thousands of columns take seconds to write and to load, and
    the page itself looks at fewer.

    Wider ones are multiplied with a Gaussian matrix, always the same one, which keeps distances between
    points to within some percent (Johnson and Lindenstrauss 1984; Dasgupta and Gupta 2003).
    """
    width = points.shape[1]
    if width <= MOST_DIMENSIONS:
        return points
    draws = np.random.default_rng(0).standard_normal((width, MOST_DIMENSIONS), dtype=np.float32)
    return points @ (draws / np.float32(np.sqrt(MOST_DIMENSIONS)))


def thumbnails(images: Any) -> "list[PIL.Image.Image]":
    """Pictures of images (N, C, H, W) uint8, small enough for all of them together."""
    import PIL.Image

    from project.figures.contact_sheet import as_rgb

    across = math.ceil(math.sqrt(len(images)))
    height, width = images.shape[2:]
    largest = min(THUMBNAIL, LARGEST_SPRITE // across)
    scale = min(1.0, largest / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    pictures = [PIL.Image.fromarray(image) for image in as_rgb(images)]
    return pictures if scale == 1 else [picture.resize(size) for picture in pictures]


def _write_sprite(file: Path, pictures: "Sequence[PIL.Image.Image]") -> tuple[int, int]:
    """Write all pictures in one square; return width and height of each."""
    import PIL.Image

    across = int(np.ceil(np.sqrt(len(pictures))))
    width, height = pictures[0].size
    sprite = PIL.Image.new("RGB", (across * width, across * height))
    for number, picture in enumerate(pictures):
        sprite.paste(picture, (number % across * width, number // across * height))
    partial = file.with_name(f"{file.name}.partial")
    try:
        sprite.save(partial, format="PNG", compress_level=3)
        partial.replace(file)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    return width, height


def _one_line(cell: str) -> str:
    return " ".join(cell.split()) or "–"
