"""Model weights: the registry, how they are fetched, and how networks are loaded."""
