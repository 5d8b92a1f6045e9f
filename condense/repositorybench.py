"""Speed of a scene repository at 1k, 10k and 100k scenes, against comparing a query with every scene's key points.

Scenes are synthetic: each mixes a few of `WORDS` unit vectors, as scenes of a few classes share parts, and each key
point is one of them with noise. A query is part of a scene's key points with noise again, seen by a camera. So the
times hold for any scenes of this size; the recall shows how the shortlist loses, not how much it loses on real scenes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from condense.benchmarks import Line, line, seconds
from condense.cameras import Cameras, look_at
from condense.keypoints import ImageKeyPoints, KeyPoints
from condense.ranking import local_similarity
from condense.repository import SceneRepository
from condense.scenequeries import SceneQueries

DIM, POINTS, SEEN = 64, 256, 200
FEWER = 32  # key points of a scene at 100k, so that it does not take 4 GB
WORDS, WORDS_OF_A_SCENE = 200, 24
NOISE, QUERY_NOISE = 0.6, 0.6  # length of the noise beside a unit vector
QUERIES, EXHAUSTIVE = 20, 10  # queries timed; of which the exhaustive search answers so many
K = torch.tensor([[80.0, 0, 32], [0, 80, 32], [0, 0, 1]])


def noisy(vectors: Tensor, length: float, generator: torch.Generator) -> Tensor:
    """Unit vectors [N, D] near unit vectors [N, D]."""
    noise = torch.randn(vectors.shape, generator=generator) * (length / vectors.shape[1] ** 0.5)
    return normalize(vectors + noise, dim=1)


def made_scene(seed: int, points: int = POINTS) -> KeyPoints:
    """A ball of key points with descriptors as above; the same for a seed."""
    generator = torch.Generator().manual_seed(seed + 1)
    words = normalize(torch.randn(WORDS, DIM, generator=torch.Generator().manual_seed(0)), dim=1)
    own = torch.randint(WORDS, (WORDS_OF_A_SCENE,), generator=generator)
    picked = own[torch.randint(WORDS_OF_A_SCENE, (points,), generator=generator)]
    positions = normalize(torch.randn(points, 3, generator=generator), dim=1)
    scores = torch.rand(points, generator=generator).sort(descending=True).values
    colours = torch.rand(points, 3, generator=generator)
    return KeyPoints(positions, positions, scores, noisy(words[picked], NOISE, generator), colours)


def made_query(seed: int, points: int = POINTS) -> ImageKeyPoints:
    """Up to `SEEN` key points of scene `seed`, a fifth of them in the wrong place, as an image of 64 px sees them."""
    scene, generator = made_scene(seed, points), torch.Generator().manual_seed(seed + 7)
    eye = normalize(torch.randn(1, 3, generator=generator), dim=1) * 3
    camera = Cameras(K[None], look_at(eye, torch.zeros(3)), torch.tensor([[64, 64]]))
    pixels, _ = camera.project(0, scene.positions[:SEEN])
    wrong = torch.rand(len(pixels), generator=generator) < 0.2
    pixels[wrong] = 64 * torch.rand(int(wrong.sum()), 2, generator=generator)
    descriptors = noisy(scene.descriptors[:SEEN], QUERY_NOISE, generator)
    return ImageKeyPoints(pixels, scene.scores[:SEEN], descriptors, (64, 64))


def exhaustive(repository: SceneRepository, query: ImageKeyPoints, block: int = 500) -> str:
    """The name of the scene with the most similar key points, when every scene is compared."""
    names, best = repository.names, []
    for start in range(0, len(names), block):
        stores = [repository.scene(name).descriptors for name in names[start : start + block]]
        best.append(local_similarity(query.descriptors, stores, worst=0.25)[0])  # as `query_image` does
    return names[int(torch.cat(best).argmax())]


def build(scenes: int, points: int) -> tuple[SceneRepository, float]:
    """A repository of made scenes, and the seconds that adding them took, making them aside."""
    repository, spent = SceneRepository("benchmark", DIM), 0.0
    for seed in range(scenes):
        scene, start = made_scene(seed, points), time.perf_counter()
        repository.add(str(seed), scene)
        spent += time.perf_counter() - start
    return repository, spent


def label(scenes: int) -> str:
    """A size as names of lines have it: 100k."""
    return f"{scenes // 1000}k" if scenes >= 1000 else str(scenes)


def spread(scenes: int, count: int) -> list[int]:
    """Numbers of `count` scenes, the first, the last and evenly between them."""
    return np.linspace(0, scenes - 1, count).astype(int).tolist()


def answered(
    store: SceneQueries, queries: Sequence[ImageKeyPoints], top: int = 10
) -> tuple[list[list[str]], list[float]]:
    """Names of each query's answers, best first, and the seconds it takes once all were asked before."""
    found = [[a.name for a in store.query_image(query, K, top)] for query in queries]  # warms up: maps what is needed
    waits = [seconds(partial(store.query_image, query, K, top), runs=1, warmup=0) for query in queries]
    return found, waits


def recall_at_1(found: Sequence[Sequence[str]], asked: Sequence[int]) -> float:
    """Share of the queries by parts of scenes `asked` whose first answer is that scene."""
    return float(np.mean([names[0] == str(seed) for seed, names in zip(asked, found, strict=True)]))


def bytes_on_disk(path: Path) -> int:
    """Of a file, or of all files in a folder."""
    return sum(part.stat().st_size for part in [path, *path.rglob("*")] if part.is_file())


def bench_size(scenes: int, folder: Path, compare: bool = True) -> dict[str, Line]:
    """One size: build, save to `folder`, load, ask; with `compare` the exhaustive search too (3 s a query at 10k)."""
    points = POINTS if scenes <= 10_000 else FEWER
    built, building = build(scenes, points)
    saving = seconds(lambda: built.save(folder), runs=1, warmup=0)
    loading = seconds(lambda: SceneRepository.load(folder), runs=3, warmup=1)
    repository = SceneRepository.load(folder)
    asked = spread(scenes, QUERIES)
    queries = [made_query(seed, points) for seed in asked]
    found, waits = answered(repository, queries)
    what = (
        f"an image of {min(points, SEEN)} key points among {scenes:,} synthetic scenes of {points}, verified by a "
        f"search for the pose; recall@1 {recall_at_1(found, asked):.2f} of {len(asked)}; "
        f"longest {max(waits) * 1e3:.0f} ms; "
        f"{bytes_on_disk(folder) / scenes / 1e3:.1f} kB a scene, "
        f"{repository._pools().nbytes / 1e6:.0f} MB of pooled vectors in memory, the rest mapped; saved in "
        f"{saving:.1f} s, loaded in {loading:.2f} s; 1 thread"
    )
    other = None
    if compare:
        other = float(np.median([seconds(partial(exhaustive, repository, q), 1, 0) for q in queries[:EXHAUSTIVE]]))
        best = [exhaustive(repository, query) for query in queries[:EXHAUSTIVE]]
        kept = np.mean([name in names for name, names in zip(best, found, strict=False)])
        what += f"; against comparing every scene's key points, whose best is among our first 10 in {kept:.2f}"
    adding = line(building, None, f"adding {scenes:,} scenes of {points} key points in memory")
    return {
        f"repository_query_{label(scenes)}": line(float(np.median(waits)), other, what),
        f"repository_build_{label(scenes)}": adding,
    }


def bench_repository(sizes: Sequence[int] = (1_000, 10_000, 100_000)) -> dict[str, Line]:
    """Lines `repository_query_1k` and so on; beyond 10k scenes only ours is timed, with fewer key points a scene."""
    lines: dict[str, Line] = {}
    for scenes in sizes:
        with tempfile.TemporaryDirectory() as folder:
            lines |= bench_size(scenes, Path(folder) / "repository", compare=scenes <= 10_000)
    return lines
