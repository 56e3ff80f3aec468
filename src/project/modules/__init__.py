"""LightningModule and its parts: networks, losses, optimizers, schedules, metrics."""
