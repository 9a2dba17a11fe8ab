"""One run: the loop, the optimizer, checkpoints, and what is written down."""
