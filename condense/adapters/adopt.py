"""Camera files for all scenes of a public data set on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from condense.adapters import co3d, objaverse, rgbd, scannet, scannetpp
from condense.adapters.cameras import Photograph, write_cameras
from condense.captures.colmap import find_colmap
from condense.captures.folder import Folder
from condense.captures.transforms import find_transforms


def _nothing(folder: Path) -> list[str]:
    return []


class Adapter(NamedTuple):
    """How a data set's scenes are found below a root, and read, and which images of a scene are no photographs."""

    find: Callable[[Path], list[Path]]
    read: Callable[[Path], list[Photograph]]
    spare: Callable[[Path], list[str]] = _nothing


ADAPTERS = {
    "co3d": Adapter(co3d.find, co3d.read),
    "scannet": Adapter(scannet.find, scannet.read),
    "scannetpp": Adapter(scannetpp.find, scannetpp.read),
    "tum": Adapter(rgbd.find_tum, rgbd.read_tum),
    "7scenes": Adapter(rgbd.find_seven_scenes, rgbd.read_seven_scenes),
    "objaverse": Adapter(objaverse.find, objaverse.read, objaverse.spare),
}


def adopt(name: str, root: Path, every: int = 1) -> tuple[list[Path], dict[Path, str]]:
    """Writes `transforms.json` into every scene of a data set that has no camera file yet.

    One scene after the other: memory does not grow with their number.

    Args:
        name: a key of ADAPTERS.
        root: where the data set was unpacked to.
        every: takes each so many photographs of a video; the others are listed as unused.

    Returns:
        The folders that are captures now, those that were before included, and {folder: why it is none}.

    Raises:
        FileNotFoundError: no such folder, or no scene of this data set in it.
        ValueError: an unknown name.
    """
    if name not in ADAPTERS:
        raise ValueError(f"{name!r} is none of {', '.join(ADAPTERS)}; COLMAP and nerfstudio folders need no adapter")
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder")
    adapter = ADAPTERS[name]
    folders = adapter.find(root)
    if not folders:
        raise FileNotFoundError(f"{root} holds no scene of {name}: name the folder that the release unpacks to")
    captures, wrong = [], {}
    for folder in tqdm(folders, desc=name):
        here = Folder(folder)
        try:
            if not (find_transforms(here) or find_colmap(here)):
                views = adapter.read(folder)
                skipped = [view.image for i, view in enumerate(views) if i % every]
                write_cameras(folder, views[::every], skipped + adapter.spare(folder))
            captures.append(folder)
        except (OSError, ValueError) as error:
            wrong[folder] = str(error)
    return captures, wrong
