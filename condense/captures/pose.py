"""Poses for photographs that have none: COLMAP's structure from motion, through pycolmap."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from condense.captures.colmap import find_colmap
from condense.captures.folder import Folder
from condense.captures.images import ImageError, decode, is_image
from condense.captures.transforms import find_transforms
from condense.colmap import pycolmap

LEAST = 3  # photographs that a model is made of
OVERLAP = 20  # frames of a video that one is matched with, on either side


@dataclass(frozen=True)
class Posed:
    """What structure from motion made of a folder.

    Args:
        model: the folder of the COLMAP model.
        photographs: those that have a pose now, below the folder of the images.
        left_out: those that have none, and why.
        error_px: mean reprojection error of the model's points.
    """

    model: Path
    photographs: tuple[str, ...]
    left_out: dict[str, str]
    error_px: float


def pose_folder(
    folder: Path,
    video: bool = False,
    lens_per_image: bool = False,
    longest: int = 1600,
    processes: int = 2,
    seed: int = 0,
) -> Posed:
    """Finds cameras for the photographs in `folder/images`, or in `folder` itself, and writes `folder/sparse/0`.

    SIFT, matching, incremental mapping and bundle adjustment with one radial lens for all photographs of one size. The
    world's frame and scale are arbitrary, as always with poses from images alone.

    Args:
        folder: a directory without camera files.
        video: the photographs, by name, are frames of a video: each is matched with its neighbours in time alone.
        lens_per_image: set where the zoom changed; else only photographs of different sizes have lenses of their own.
        longest: features are found in photographs reduced to this longer side, in pixels.
        processes: threads of COLMAP.
        seed: of its RANSAC.

    Raises:
        FileNotFoundError: no such directory.
        ValueError: there are cameras already, fewer than LEAST photographs can be read, or no model came of them.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a directory: name a folder of photographs (unpack a .zip first)")
    here = Folder(folder)
    if find_transforms(here) or find_colmap(here):
        raise ValueError(f"{folder} has a camera file: 'condense doctor {folder}' says what it holds")
    images = folder / "images" if any(map(is_image, here.files("images"))) else folder
    sizes, left_out = _sizes(images)
    if len(sizes) < LEAST:
        raise ValueError(f"{images}: {len(sizes)} photographs can be read, and {LEAST} are the least; {left_out}")
    shared = len(set(sizes.values())) == 1 and not lens_per_image
    with tempfile.TemporaryDirectory(dir=folder, prefix=".pose-") as work, _quiet():
        database = Path(work) / "database.db"
        _extract(database, images, list(sizes), shared, longest, processes)
        _match(database, video, processes, seed)
        model = _map(database, images, Path(work), len(sizes), processes, seed)
        if model is None:
            raise ValueError(
                f"{images}: no two of {len(sizes)} photographs show enough of the same: take more of them, sharp, from "
                "places close to each other, of a scene with texture"
            )
        (Path(work) / "model").mkdir()
        model.write(Path(work) / "model")
        (folder / "sparse").mkdir(exist_ok=True)
        (Path(work) / "model").rename(folder / "sparse" / "0")
    names = {image.name for image in model.images.values() if image.has_pose}
    left_out |= {name: "shares too little with the others" for name in sizes if name not in names}
    error = float(model.compute_mean_reprojection_error())
    return Posed(folder / "sparse" / "0", tuple(sorted(names)), left_out, error)


def _sizes(images: Path) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """{name: (width, height)} of the photographs that decode, and {name: what is wrong} of the others."""
    sizes, wrong = {}, {}
    for name in tqdm(list(filter(is_image, Folder(images).files())), desc="photographs"):
        try:
            sizes[name] = decode((images / name).read_bytes())[0].size
        except (ImageError, OSError) as error:
            wrong[name] = str(error)
    return sizes, wrong


def _extract(database: Path, images: Path, names: Sequence[str], shared: bool, longest: int, threads: int) -> None:
    options = pycolmap.FeatureExtractionOptions(max_image_size=longest, num_threads=threads, use_gpu=False)
    mode = pycolmap.CameraMode.SINGLE if shared else pycolmap.CameraMode.PER_IMAGE
    with _stage("features"):
        pycolmap.extract_features(database, images, list(names), mode, extraction_options=options)


def _match(database: Path, video: bool, threads: int, seed: int) -> None:
    options = pycolmap.FeatureMatchingOptions(num_threads=threads, use_gpu=False)
    geometry = pycolmap.TwoViewGeometryOptions()
    geometry.ransac.random_seed = seed
    with _stage("matches"):
        if video:
            pairs = pycolmap.SequentialPairingOptions(overlap=OVERLAP, loop_detection=False)
            pycolmap.match_sequential(database, options, pairs, geometry)
        else:
            pycolmap.match_exhaustive(database, options, verification_options=geometry)


def _map(
    database: Path, images: Path, work: Path, count: int, threads: int, seed: int
) -> pycolmap.Reconstruction | None:
    """The model with most photographs; None if there is none."""
    options = pycolmap.IncrementalPipelineOptions(num_threads=threads, random_seed=seed, min_model_size=LEAST)
    (work / "models").mkdir()
    with tqdm(total=count, desc="poses") as bar:
        models = pycolmap.incremental_mapping(
            database, images, work / "models", options, next_image_callback=lambda: bar.update()
        )
    return max(models.values(), key=lambda model: model.num_reg_images(), default=None)


@contextmanager
def _stage(title: str) -> Iterator[None]:
    """A bar that says what COLMAP is at, and for how long it was."""
    with tqdm(total=1, desc=title, bar_format="{desc}: {elapsed}") as bar:
        yield
        bar.update()


@contextmanager
def _quiet() -> Iterator[None]:
    """COLMAP says only what is wrong."""
    before = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = pycolmap.logging.Level.ERROR.value
    try:
        yield
    finally:
        pycolmap.logging.minloglevel = before
