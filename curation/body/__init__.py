"""Body joints, camera motion, and motion intensity."""
