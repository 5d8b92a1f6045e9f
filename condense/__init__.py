"""ConDense: joint 2D-3D pre-training from posed multi-view images."""

import os

# Model hubs count downloads and report usage unless told not to; nothing here calls out unasked.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
