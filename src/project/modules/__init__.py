"""LightningModule with networks, losses, optimizers, learning-rate schedules and metrics."""
