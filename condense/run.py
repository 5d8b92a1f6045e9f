"""One run of the study: its settings, its artefacts, its reports."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from condense.params import Params, load_params, merge
from condense.paths import project_root, write_atomically

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Run:
    """A run's folder and settings; the project's root is the run `mini`, all others lie below `runs/`."""

    folder: Path
    params: Params

    @property
    def captures(self) -> Path:
        """The folder of the captures this run reads."""
        return self.folder / self.params.captures.folder

    def artifact(self, name: str) -> Path:
        """The path of an upstream artefact.

        Raises:
            FileNotFoundError: the notebook that makes it has not run yet.
        """
        path = self.folder / "artifacts" / name
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist yet: run the notebooks before this one, or 'make repro'")
        return path

    def workspace(self, name: str, modules: Iterable[str], settings: Any, inputs: Iterable[Path]) -> Path:
        """The folder of a long stage's artefact, where finished parts are kept and left-overs are not.

        What is in it stays if it was made by the same code, settings and inputs: a killed stage goes on where
        it was, and a notebook whose plots were edited does not train again. Otherwise it is emptied.

        Args:
            name: the artefact's name.
            modules: the modules that compute it; what they import counts as well.
            settings: whatever else decides the result (printed with `repr`).
            inputs: files and folders it reads.
        """
        folder = self.folder / "artifacts" / name
        sources = {path for module in modules for path in source_files(module)}
        sources = {path for path in sources if path.name != "params.py"}  # `settings` has what counts of it
        key = digest([*sorted(sources), *inputs], repr(settings))
        stamp = folder / "key.txt"
        if not (stamp.is_file() and stamp.read_text() == key):
            shutil.rmtree(folder, ignore_errors=True)
            write_atomically(stamp, lambda path: path.write_text(key))
        return folder

    def save_metrics(self, name: str, metrics: dict[str, Any]) -> None:
        """Writes `reports/metrics/<name>.json`: {method: {metric: {mean, ci95, n}}}."""
        text = json.dumps(metrics, indent=1, sort_keys=True) + "\n"
        path = self.folder / "reports" / "metrics" / f"{name}.json"
        write_atomically(path, lambda temporary: temporary.write_text(text))

    def save_table(self, name: str, table: pd.DataFrame) -> None:
        """Writes `reports/tables/<name>.csv`."""
        path = self.folder / "reports" / "tables" / f"{name}.csv"
        write_atomically(path, lambda temporary: table.to_csv(temporary, index=False))

    def save_figure(self, name: str, figure: Figure, caption: str) -> None:
        """Writes `reports/figures/<name>.png` and `.pdf`; `name` is `<stage>/<figure>`.

        The PNG carries the caption (its "Description"); the report shows it.
        """
        for suffix, metadata in (
            (".png", {"Description": caption, "Software": None}),
            (".pdf", {"CreationDate": None}),
        ):
            path = self.folder / "reports" / "figures" / f"{name}{suffix}"
            write_atomically(path, partial(figure.savefig, dpi=150, bbox_inches="tight", metadata=metadata))


PACKAGE = Path(__file__).parent


def source_files(module: str) -> list[Path]:
    """The source files of a module of this package and of all that it imports from the package; none is run."""
    found: dict[str, Path] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        path = _source(name)
        if name not in found and path is not None:
            found[name] = path
            pending += imports_of(path.read_text())
    return sorted(found.values())


def imports_of(source: str) -> list[str]:
    """The modules of this package that Python source imports anywhere in it."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names]  # a module, or a function in one
    return [name for name in names if _source(name) is not None]


def _source(module: str) -> Path | None:
    """The file of a module of this package, `__init__.py` of a folder; None for anything else."""
    first, *rest = module.split(".")
    path = PACKAGE.joinpath(*rest)
    if first != PACKAGE.name:
        return None
    if path.is_dir():
        return path / "__init__.py"
    return path.with_suffix(".py") if path.with_suffix(".py").is_file() else None


def digest(paths: Iterable[Path], text: str = "") -> str:
    """A hash of the contents and relative names of files and folders, and of a text."""
    hasher = hashlib.blake2b(text.encode(), digest_size=16)
    for path in paths:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            hasher.update(str(file.relative_to(path.parent)).encode())
            hasher.update(file.read_bytes())
    return hasher.hexdigest()


def open_run(folder: str | Path) -> Run:
    """The run in `folder`: a path from here, or `runs/<profile>` from the project's root.

    A run of a profile that has no folder yet gets one. The pipeline opens ".", a notebook opened by hand
    `runs/smoke`.

    Raises:
        FileNotFoundError: there is no such run and no profile of that name.
    """
    here = Path(folder)
    if (here / "params.yaml").is_file():
        return Run(here, load_params(here / "params.yaml"))
    path = project_root() / folder
    if not (path / "params.yaml").is_file():
        prepare_run(path.name)
    return Run(path, load_params(path / "params.yaml"))


def prepare_run(
    name: str, profile: str | None = None, captures: str | None = None, backbone: str | None = None
) -> Path:
    """Makes `runs/<name>`: a pipeline of its own with its own settings, lock and reports.

    Args:
        name: the folder's name.
        profile: a file in `profiles/` that overrides `params.yaml`; the name itself if not given.
        captures: another folder of captures.
        backbone: another 2D network: a transformers hub name, or a folder.

    Raises:
        FileNotFoundError: no such profile or folder of captures.
    """
    root = project_root()
    override = root / "profiles" / f"{profile or name}.yaml"
    if not override.is_file():
        known = ", ".join(sorted(path.stem for path in override.parent.glob("*.yaml")))
        raise FileNotFoundError(f"{override} does not exist; profiles: {known}")
    folder = root / "runs" / name
    source = Path(captures).resolve() if captures else root / "data"
    if captures and not source.is_dir():
        raise FileNotFoundError(f"CAPTURES={captures} is not a folder")
    settings = merge(yaml.safe_load((root / "params.yaml").read_text()), yaml.safe_load(override.read_text()) or {})
    change: dict[str, Any] = {"root": "../..", "captures": {"folder": os.path.relpath(source, folder)}}
    if backbone:
        local = Path(backbone).is_dir()
        change["teacher"] = {"name": os.path.relpath(Path(backbone).resolve(), folder) if local else backbone}
    text = yaml.safe_dump(merge(settings, change), sort_keys=False)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "params.yaml", lambda path: path.write_text(text))
    write_atomically(folder / "dvc.yaml", lambda path: shutil.copyfile(root / "dvc.yaml", path))
    _own_dvc(folder, root)
    return folder


def _own_dvc(folder: Path, root: Path) -> None:
    """Gives the folder DVC state of its own, outside git: the committed lock is never touched."""
    config = folder / ".dvc" / "config"
    text = "[core]\n    analytics = false\n    check_update = false\n    no_scm = true\n"
    if not config.is_file():
        (folder / ".dvc" / "tmp").mkdir(parents=True, exist_ok=True)
        write_atomically(config, lambda path: path.write_text(text))
