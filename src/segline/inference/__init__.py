"""Tiled prediction of whole files."""
