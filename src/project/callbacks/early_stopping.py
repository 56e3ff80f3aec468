"""Early stopping."""

from typing import Any

from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping


class EarlyStopping(LightningEarlyStopping):
    """Lightning's callback, but a resumed run's patience is that of its configuration."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score and the checks since it."""
        super().load_state_dict(state_dict | {"patience": self.patience})
