"""Captures: posed multi-view images of one object or room, and the readers of their formats."""
