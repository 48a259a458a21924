"""Synthetic scenes of the four domains: real files, written once, worth learning.

A seed and an index make a scene, so the same call writes the same files on every machine, and more scenes do not change the
first ones. Classes, file names and groups stand in each module's docstring.
"""

#: Changes whenever the files would: part of the name of the folder that keeps them.
VERSION = 1
