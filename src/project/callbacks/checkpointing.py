"""Checkpoints in the run folder."""

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint


class Checkpoint(ModelCheckpoint):
    """Lightning's callback, for run folders that may have been moved since the checkpoint was written.

    It would otherwise forget the best score so far, and replace the best weights by worse ones.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the scores, with paths in the present folder."""
        moved = {}
        for key in ("best_model_path", "last_model_path", "kth_best_model_path"):
            moved[key] = self._here(state_dict[key])
        best_k_models = {self._here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(
            state_dict | moved | {"best_k_models": best_k_models, "dirpath": str(self.dirpath)}
        )
        self.current_score = state_dict.get("current_score")

    def _here(self, path: str) -> str:
        return str(Path(self.dirpath or "", Path(path).name)) if path else ""
