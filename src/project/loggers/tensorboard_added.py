"""Images that commands add to the TensorBoard page of a run after its training."""

import glob
import logging
from typing import TYPE_CHECKING

from project.runs.folders import has_died
from project.runs.run_folder import RunFolder

if TYPE_CHECKING:
    import PIL.Image

log = logging.getLogger(__name__)

MARK = ".added."
"""Part of the names of the event files of this module."""
GROUP = "visuals"
"""Group of all images: an image in the group of a split would come before the curves of the next split."""


def add_image(run: RunFolder, name: str, tag: str, image: "PIL.Image.Image", step: int) -> bool:
    """Show an image on the TensorBoard page of a run; return true if done.

    The image has an event file of its own, which replaces that of an earlier call with the same name.
    TensorBoard does not return to an older event file after reading a newer one: a run that trains gets no
    image, because its curves would stop. A run without event files gets none either.

    Args:
        run: the run.
        name: name of the image, as a part of a file name.
        tag: its place on the page below `visuals`.
        image: RGB.
        step: training step of the weights.
    """
    status = run.read_status()
    is_training = status.get("state") == "running" and not has_died(run.path, status)
    if is_training or not any(run.path.glob("events.out.tfevents.*")):
        return False
    import numpy as np
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    suffix = MARK + name
    try:
        for file in run.path.glob(f"events.out.tfevents.*{glob.escape(suffix)}"):
            file.unlink(missing_ok=True)
        with SummaryWriter(str(run.path), filename_suffix=suffix) as writer:
            writer.add_image(f"{GROUP}/{tag}", np.asarray(image), step, dataformats="HWC")
    except OSError as error:
        log.warning("warning: %s: not shown in TensorBoard (%s)", run.shown, error.strerror or error)
        return False
    return True
