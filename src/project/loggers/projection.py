"""Points with thumbnails for TensorBoard's Projector, as files in the run folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from project.runs.outages import replace_text

if TYPE_CHECKING:
    import PIL.Image

FOLDER = "projector"
CONFIG = "projector_config.pbtxt"
LARGEST_SPRITE = 4096
"""Side of the picture that holds all thumbnails, pixels; WebGL takes no more everywhere."""


def write_projection(
    folder: Path,
    name: str,
    points: NDArray[np.float32],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    thumbnails: "Sequence[PIL.Image.Image]",
) -> None:
    """Write points, what is known of each, and a thumbnail of each. The file that names the others is
    written last: what is cut short is not seen.

    Args:
        folder: of the run.
        name: of the points.
        points: (N, D).
        columns: names of what is known.
        rows: N of them.
        thumbnails: N pictures of equal size.

    Raises:
        OSError: there is no room, or no permission.
    """
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    lines = ("\t".join(map("%.4g".__mod__, point)) for point in points.tolist())
    replace_text(place / "points.tsv", "\n".join(lines) + "\n", durable=False)
    # Of one column the page wants no head.
    head = [columns] if len(columns) > 1 else []
    table = "\n".join("\t".join(_one_line(cell) for cell in row) for row in [*head, *rows])
    replace_text(place / "points_known.tsv", table + "\n", durable=False)
    side = _write_sprite(place / "points.png", thumbnails)
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


def _write_sprite(file: Path, thumbnails: "Sequence[PIL.Image.Image]") -> tuple[int, int]:
    """Write all thumbnails in one square; return width and height of each."""
    import PIL.Image

    across = int(np.ceil(np.sqrt(len(thumbnails))))
    width, height = thumbnails[0].size
    sprite = PIL.Image.new("RGB", (across * width, across * height))
    for number, thumbnail in enumerate(thumbnails):
        sprite.paste(thumbnail, (number % across * width, number // across * height))
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
