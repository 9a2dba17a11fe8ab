"""Shot boundary detection: jumps of colours and faces, and a network."""
