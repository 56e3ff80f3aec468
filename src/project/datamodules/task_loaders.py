"""Data module of a LightningModule that defines its own data loaders."""

from typing import Any

import lightning as L
from lightning.pytorch.utilities.model_helpers import is_overridden

OPTIONAL = ("val_dataloader", "test_dataloader", "predict_dataloader")


class TaskLoaders(L.LightningDataModule):
    """The loaders of the run's LightningModule: `train_dataloader`, and optionally those of other splits."""

    def leave_out_missing(self, module: L.LightningModule) -> None:
        """Let this data module have only the splits of which the module has a loader."""
        for name in OPTIONAL:
            if not is_overridden(name, module):
                setattr(self, name, getattr(super(), name))  # Lightning looks for overridden methods

    def train_dataloader(self) -> Any:
        return self._module.train_dataloader()

    def val_dataloader(self) -> Any:
        return self._module.val_dataloader()

    def test_dataloader(self) -> Any:
        return self._module.test_dataloader()

    def predict_dataloader(self) -> Any:
        return self._module.predict_dataloader()

    @property
    def _module(self) -> L.LightningModule:
        assert self.trainer is not None
        return self.trainer.lightning_module
