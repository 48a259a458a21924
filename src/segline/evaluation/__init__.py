"""How good a trained network is, and where not: whole cases measured, summed up, and shown on one page."""
