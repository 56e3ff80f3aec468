"""Search for a learning rate or batch size before training."""
