import itertools
import json
import os

import torch

from condense.backbone3d import SparseUNet
from condense.benchmarks import (
    box_scene,
    forward_backward,
    line,
    matrix_products,
    packed_renderer,
    per_sample_renderer,
    ring_cameras,
    same_operator,
    write_table,
)
from condense.gpucheck import bandwidth, joint_steps
from condense.milvusbench import bench_milvus, bytes_on_disk, in_fresh_process, kept, resident
from condense.voxels import batch_scenes


def test_the_ways_that_are_timed_render_the_same(generator, monkeypatch):
    monkeypatch.setattr("condense.benchmarks.CELLS", 12)
    scene, cameras = box_scene(1), ring_cameras()
    features, cotangent = torch.randn(len(scene), 3, generator=generator), torch.randn(144, 3, generator=generator)
    renderers = [
        same_operator(scene, cameras).render,
        *(w(scene, cameras, 0) for w in (packed_renderer, per_sample_renderer)),
    ]
    ways = [forward_backward(render, features, cotangent) for render in renderers]
    assert ways[0][0].abs().max() > 0.1
    for a, b in itertools.pairwise(ways):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_matrix_products_count_every_pair_of_neighbours():
    scene = box_scene(2, boxes=1)
    model = SparseUNet(channels=(4, 6), out_channels=3)
    products = matrix_products(model, batch_scenes([scene]))
    coords = scene.coords
    pairs = ((coords[:, None] - coords[None]).abs().amax(dim=2) <= 1).sum()  # a voxel is its own neighbour
    assert sum(n for n, a, b in products if (a, b) == (7, 4)) == pairs
    assert sum(n for n, a, b in products if (a, b) == (4, 4)) == 2 * pairs
    assert products[-1] == (len(coords), 4, 3)


def test_a_table_keeps_lines_of_other_runs(tmp_path, capsys):
    path = tmp_path / "benchmarks.json"
    write_table({"a": line(2.0, 4.0, "first")}, path)
    write_table({"b": line(1.0, None, "second")}, path)
    assert json.loads(path.read_text()) == {
        "a": {"ours_s": 2.0, "other_s": 4.0, "ratio": 2.0, "what": "first"},
        "b": {"ours_s": 1.0, "what": "second"},
    }
    assert "2.00x" in capsys.readouterr().out


def test_without_milvus_its_lines_are_left_out(monkeypatch, capsys):
    monkeypatch.setattr("condense.milvusbench.find_spec", lambda name: None)
    assert bench_milvus(2) == {}
    said = capsys.readouterr().out
    assert said.startswith("milvus_* left out: Milvus Lite is not installed") and said.count("\n") == 1


def test_what_two_stores_are_compared_by(tmp_path):
    wanted = [["a", "b", "c"], ["d", "e", "f"]]
    assert kept(wanted, wanted, 3) == 1
    assert kept(wanted, [["c", "b"], ["f", "d"]], 2) == 0.5  # b and d
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"12345")
    assert bytes_on_disk(tmp_path) == bytes_on_disk(tmp_path / "folder" / "file") == 5
    process, ending = in_fresh_process(os.getpid)
    assert process != os.getpid() and ending >= 0
    assert resident() > 1e6


def test_what_the_gpu_check_times_runs_on_the_cpu_as_well(monkeypatch):
    monkeypatch.setattr("condense.gpucheck.seconds", lambda function, **_: function() is None or 0.5)
    lines = {**bandwidth("cpu", megabytes=1), **joint_steps("cpu", captures=2, compiled=False)}
    assert set(lines) == {"operator_bandwidth", "joint_step_float32", "joint_step_bfloat16"}
    assert "2.0 a second" in lines["joint_step_bfloat16"]["what"] and lines["joint_step_bfloat16"]["ratio"] == 1
