"""pycolmap, without the signal handler that it installs when imported.

That handler answers the SIGTERM by which Jupyter ends a kernel with a stack trace, as if something had gone wrong.
"""

import signal
import threading

import pycolmap

__all__ = ["pycolmap"]

if threading.current_thread() is threading.main_thread():  # nothing else may set a handler
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
