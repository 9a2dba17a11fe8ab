"""Records, units, the shard sample and configuration: imports nothing else of ours."""
