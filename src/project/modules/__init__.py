"""The LightningModule and what it is made of: networks, losses, optimizers, schedules, metrics."""
