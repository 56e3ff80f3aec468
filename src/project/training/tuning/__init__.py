"""Search for a learning rate or a batch size before training."""
