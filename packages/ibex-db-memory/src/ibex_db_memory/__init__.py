"""Sessions, checkpoints, memories."""
