"""ConDense: joint 2D-3D pre-training from posed multi-view images."""
