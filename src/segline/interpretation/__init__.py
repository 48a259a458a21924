"""What a trained network has learned, and what it looks at."""
