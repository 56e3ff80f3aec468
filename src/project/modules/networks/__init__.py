"""Networks: plain modules from images to logits."""
