"""Options of `scripts/explain.py`. Imports no torch."""

from typing import Literal

Method = Literal["auto", "grad_cam", "integrated_gradients", "occlusion", "attention_rollout"]
Baseline = Literal["black", "mean"]
