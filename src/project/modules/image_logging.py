"""Images of a module's results for loggers with a method `log_image`."""

import logging
from collections.abc import Sequence
from typing import Any

import lightning as L

from project.errors import one_line
from project.figures import contact_sheet

log = logging.getLogger(__name__)

MAX_TILE = 128
"""Maximum width of an image on a contact sheet, pixels; limits the size of event files."""


def is_picture_due(module: L.LightningModule) -> bool:
    """Return True after the test, and in training after 1, 2, 4, 8, … epochs, if a logger takes images.

    The growing intervals bound the size of event files.
    """
    trainer = module.trainer
    if not trainer.is_global_zero or not any(hasattr(logger, "log_image") for logger in trainer.loggers):
        return False
    epochs = trainer.current_epoch + 1
    return trainer.state.fn == "test" or (trainer.state.fn == "fit" and epochs & (epochs - 1) == 0)


def log_sheet(
    module: L.LightningModule, tag: str, pixels: Any, *, title: str, captions: Sequence[str] = ()
) -> None:
    """Send a contact sheet to all loggers with a method `log_image`; a failure is logged as a warning.

    Args:
        module: attached to a trainer.
        tag: name of the image, such as `val/reconstructions`.
        pixels: (N, C, H, W) uint8 with 1 or 3 channels; others are not drawn.
        title: title above the images.
        captions: N strings [none].
    """
    if pixels.shape[1] not in (1, 3):
        return
    try:
        tile = MAX_TILE if max(pixels.shape[2:]) > MAX_TILE else None
        sheet = contact_sheet(pixels, list(captions) or [""] * len(pixels), title=title, tile=tile)
        for logger in module.trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image(tag, sheet, module.trainer.global_step)
    except Exception as error:  # a picture must not stop a training
        log.warning("warning: not logged: %s: %s", tag, one_line(error))
