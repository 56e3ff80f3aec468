"""Objects from groups of a configuration."""

from typing import Any

from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from project import targets
from project.errors import InputError, one_line

REFUSALS = (ValueError, TypeError, ImportError, MisconfigurationException, HydraException)
"""What constructors raise when they do not take a value."""


def build(config: dict[str, Any], group: str, **more: Any) -> Any:
    """Make the object (or the dict of objects) that a group of the configuration describes.

    Raises:
        InputError: it is not allowed to be made, or its constructor refuses the values.
    """
    targets.confirm(config[group], group)
    try:
        return instantiate(config[group], _convert_="all", **more)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, InputError):
            raise cause from None
        if isinstance(cause, REFUSALS):
            raise InputError(f"{group}: {one_line(cause)}") from error
        raise
