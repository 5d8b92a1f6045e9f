"""Where things are: the project's root, and the folder of one run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def project_root(start: Path | None = None) -> Path:
    """The folder that holds `pyproject.toml` of this project, looked for upward from `start` (or here).

    Raises:
        FileNotFoundError: no such folder; run from inside the project.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents, *Path(__file__).resolve().parents):
        if (folder / "pyproject.toml").is_file() and (folder / "condense").is_dir():
            return folder
    raise FileNotFoundError(f"{start} is not inside a clone of condense: cd into the clone and try again")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a temporary path beside `path` (same ending), then renames it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
