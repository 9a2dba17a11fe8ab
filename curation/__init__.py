"""What is measured in one video: one file per question."""
