"""Shot boundary detection by jumps of colours and faces, and by a network."""
