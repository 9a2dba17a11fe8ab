"""A training run: loop, optimizer, parallelism, checkpoints and published layouts."""
