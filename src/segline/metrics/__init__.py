"""What is measured of a prediction. Counts, surfaces, objects, calibration: each a file that knows nothing of the others."""
