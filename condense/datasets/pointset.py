"""Point sets: an index of labelled point clouds, each read when it is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from condense.captures.capture import Finding


class DatasetError(ValueError):
    """A data set, or one cloud of it, that cannot be used; `findings` say why, the decisive one last."""

    def __init__(self, name: str, findings: Sequence[Finding]):
        super().__init__(f"{name} cannot be used:\n" + "\n".join(f"  {finding}" for finding in findings))
        self.name = name
        self.findings = tuple(findings)

    def __reduce__(self) -> tuple[Any, ...]:  # so that it survives the way out of a worker process
        return DatasetError, (self.name, self.findings)


@dataclass(frozen=True)
class Contents:
    """What a reader finds in the files of one cloud.

    Args:
        points: [P, 3] float32, +Z up, in the data set's own units.
        colours: [P, 3] float32 RGB in [0, 1]; None where the format has none.
        labels: [P] int64, 0 = ignored; None where there are none.
        findings: what was set aside within the cloud.
    """

    points: Tensor
    colours: Tensor | None = None
    labels: Tensor | None = None
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class PointCloud:
    """One labelled point cloud.

    Args:
        name: unique within its set.
        points: [P, 3] float32, +Z up; metres in S3DIS and ScanNet, else the release's own scale.
        colours: [P, 3] float32 RGB in [0, 1]; None where the format has none.
        label: class of the whole cloud, a place in the set's `classes`; None for rooms.
        labels: [P] int64, 0 = ignored, i > 0 is the set's `point_classes[i - 1]`; None where there are none.
        split: "train", "val" or "test".
        findings: what was set aside within the cloud.
    """

    name: str
    points: Tensor
    colours: Tensor | None
    label: int | None
    labels: Tensor | None
    split: str
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One cloud of the index: where it is (`file`, relative to the root) and how it is read."""

    name: str
    file: str
    split: str
    label: int | None
    read: Callable[[], Contents]  # a partial of a module's function, so that an index can go to other processes


@dataclass(frozen=True)
class PointSet:
    """The index of a data set; `point_set[i]` reads one cloud, and does not keep it.

    Args:
        name: as given to `open_dataset`.
        classes: of whole clouds; () where clouds have none.
        point_classes: of points; the label i stands for `point_classes[i - 1]`, and 0 is ignored.
        entries: the index, in the order of the release's lists.
        findings: what is wrong with the release as it lies on disk.
        parts: class → its point labels, where the two depend on each other (ShapeNetPart), else {}.
    """

    name: str
    classes: tuple[str, ...]
    point_classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    findings: tuple[Finding, ...] = ()
    parts: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.entries:
            nothing = Finding(self.name, "has no cloud that can be used", "mend what is listed above")
            raise DatasetError(self.name, [*self.findings, nothing])

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def splits(self) -> dict[str, int]:
        """How many clouds each split has."""
        return dict(Counter(entry.split for entry in self.entries))

    def indices(self, split: str) -> list[int]:
        """The places of a split's clouds; their classes are `entries[i].label`.

        Raises:
            ValueError: the set has no such split.
        """
        if split not in self.splits:
            raise ValueError(f"{self.name} has no clouds of split {split!r}, only of {sorted(self.splits)}")
        return [i for i, entry in enumerate(self.entries) if entry.split == split]

    def __getitem__(self, i: int) -> PointCloud:
        """Reads one cloud.

        Raises:
            DatasetError: its file is damaged: shapes disagree, a point is not finite, or a label is unknown.
        """
        entry = self.entries[i]
        contents = entry.read()
        self._check(entry, contents)
        points, colours, labels = contents.points, contents.colours, contents.labels
        return PointCloud(entry.name, points, colours, entry.label, labels, entry.split, contents.findings)

    def _check(self, entry: Entry, contents: Contents) -> None:
        points, colours, labels = contents.points, contents.colours, contents.labels
        if points.ndim != 2 or points.shape[1] != 3 or not len(points):
            raise self._damaged(entry, f"has points of shape {tuple(points.shape)}, not [P, 3]")
        infinite = ~points.isfinite().all(dim=1)
        if infinite.any():
            first = int(infinite.nonzero()[0])
            raise self._damaged(entry, f"has {int(infinite.sum())} points that are not finite, the first is {first}")
        if colours is not None and colours.shape != points.shape:
            raise self._damaged(entry, f"has {len(points)} points and colours of shape {tuple(colours.shape)}")
        if labels is None:
            return
        if labels.shape != points.shape[:1]:
            raise self._damaged(entry, f"has {len(points)} points and labels of shape {tuple(labels.shape)}")
        known = range(len(self.point_classes) + 1)
        if entry.label is not None and self.parts:
            parts = self.parts[self.classes[entry.label]]
            known = range(parts[0], parts[-1] + 1)
        outside = (labels < known.start) | (labels >= known.stop)
        if outside.any():
            problem = "has the point label {}, outside {} to {} (counted from 1; 0 = ignored)"
            worst = int(labels[outside][0])
            raise self._damaged(entry, problem.format(worst, known.start, known.stop - 1))

    def _damaged(self, entry: Entry, problem: str) -> DatasetError:
        finding = Finding(entry.file, problem, "download or unpack the file again")
        return DatasetError(entry.name, [finding])


def verify(point_set: PointSet) -> list[Finding]:
    """Reads every cloud, which alone finds damaged files, and returns what is wrong with them."""
    findings: list[Finding] = []
    for i in tqdm(range(len(point_set)), unit="cloud", disable=None, leave=False):
        try:
            findings += point_set[i].findings
        except DatasetError as error:
            findings += error.findings
    return findings


def z_up(points: Tensor) -> Tensor:
    """Points [P, 3] of a +Y up frame in a +Z up frame: a quarter turn about x, (x, y, z) to (x, -z, y)."""
    x, y, z = points.unbind(dim=1)
    return torch.stack([x, -z, y], dim=1)
