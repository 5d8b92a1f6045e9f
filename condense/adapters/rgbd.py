"""RGB-D videos of Kinects: TUM RGB-D (Sturm et al., IROS 2012) and 7-Scenes (Shotton et al., CVPR 2013)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from condense.adapters.cameras import Photograph, matrix_file

KINECT = (640, 480)
# fx, fy, cx, cy and k1, k2, p1, p2, k3 of the colour cameras, as TUM publishes them (pixel centres at whole numbers)
TUM = {
    "1": ((517.306408, 516.469215), (318.643040, 255.313989), (0.262383, -0.953104, -0.005358, 0.002628, 1.163314)),
    "2": ((520.908620, 521.007327), (325.141442, 249.701764), (0.231222, -0.784899, -0.003257, -0.000105, 0.917205)),
    "3": ((535.4, 539.2), (320.1, 247.6), ()),
}
APART = 0.02  # seconds between a photograph and its pose, at most; TUM's own tools take as much
SEVEN_SCENES = 525.0  # focal length of the colour camera that localisation works use; the data set gives none


def find_tum(root: Path) -> list[Path]:
    """The sequences below `root`."""
    return sorted(path.parent for path in root.rglob("groundtruth.txt") if (path.parent / "rgb.txt").is_file())


def read_tum(folder: Path) -> list[Photograph]:
    """The photographs of a sequence, each with the pose nearest in time; those without one have a pose of NaN.

    Raises:
        ValueError: the folder's name does not say which camera it was, or a list is damaged.
    """
    camera = re.search(r"freiburg([123])", folder.name)
    if camera is None:
        raise ValueError(f"{folder.name} does not say which camera took it: it should hold freiburg1, 2 or 3")
    focal, (cx, cy), distortion = TUM[camera[1]]
    images = [line.split() for line in _lines(folder / "rgb.txt")]
    truth = _numbers(folder / "groundtruth.txt")
    times = _times(folder / "rgb.txt", images)
    nearest = np.abs(truth[None, :, 0] - times[:, None]).argmin(1) if len(truth) else np.zeros(len(times), int)
    views = []
    for time, (_, image, *_), row in zip(times, images, nearest, strict=True):
        known = len(truth) > 0 and abs(truth[row, 0] - time) <= APART
        pose = _pose(truth[row, 1:]) if known else np.full((4, 4), np.nan)
        views.append(Photograph(image, KINECT, focal, (cx + 0.5, cy + 0.5), pose, distortion))
    return views


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]


def _times(path: Path, lines: list[list[str]]) -> NDArray[np.float64]:
    if any(len(words) < 2 for words in lines):
        raise ValueError(f"{path}: a line does not hold a time and a file")
    return np.array([float(words[0]) for words in lines])


def _numbers(path: Path) -> NDArray[np.float64]:
    """[P, 8] time, place and quaternion x, y, z, w."""
    try:
        return np.array([line.split() for line in _lines(path)], np.float64).reshape(-1, 8)
    except ValueError as error:
        raise ValueError(f"{path}: a line does not hold 8 numbers: {error}") from None


def _pose(values: NDArray[np.float64]) -> NDArray[np.float64]:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = Rotation.from_quat(values[3:]).as_matrix(), values[:3]
    return pose


def find_seven_scenes(root: Path) -> list[Path]:
    """The scenes below `root`; all sequences of a scene share one world."""
    return sorted({path.parent for path in root.rglob("seq-*") if path.is_dir()})


def read_seven_scenes(folder: Path) -> list[Photograph]:
    """The photographs of all sequences of a scene, train and test as its split files say.

    Raises:
        ValueError: a pose file is damaged or missing.
    """
    tests = _sequences(folder / "TestSplit.txt")
    views = []
    for image in sorted(folder.glob("seq-*/*.color.png")):
        pose = matrix_file(image.with_name(image.name.replace(".color.png", ".pose.txt")))
        split = "test" if int(image.parent.name.removeprefix("seq-")) in tests else "train"
        name = image.relative_to(folder).as_posix()
        focal, centre = (SEVEN_SCENES, SEVEN_SCENES), (KINECT[0] / 2, KINECT[1] / 2)
        views.append(Photograph(name, KINECT, focal, centre, pose, split=split if tests else None))
    return views


def _sequences(path: Path) -> set[int]:
    """The numbers of the sequences that a split file lists, `sequence1` a line; none where there is no file."""
    return {int(number) for number in re.findall(r"\d+", path.read_text())} if path.is_file() else set()
