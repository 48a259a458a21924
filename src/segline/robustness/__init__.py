"""How much a trained network loses where images are worse than those it knows: corruptions, and attacks."""
