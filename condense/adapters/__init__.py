"""Public multi-view data sets as captures: each adapter writes a `transforms.json` beside a scene's images.

Nothing is copied; what the reader and `condense doctor` know of captures then holds for these as well.
"""
