"""Making checkpoints: data, losses, training stages."""
