"""What is trained and fitted elsewhere than on the CPU keeps its tensors together, and gives the same."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from otherdevice import DEVICE, other_device
from safetensors.torch import load_file
from test_fields import QUICK, box_views
from test_teacher import TINY
from torch import nn
from toys import tiny_teacher, toy_links, toy_scene

from condense.backbone2d import load_backbone, save_backbone
from condense.devices import device_of, open_device
from condense.distributed import BatchNorm
from condense.extraction import condense_views, detect_image
from condense.fieldfit import fit_field
from condense.links import link_views, save_links
from condense.model import image_features, new_model
from condense.params import PretrainParams, SparseParams
from condense.pretrain import pretrain_seed
from condense.rivals2d import METHODS as RIVALS
from condense.rivals2d import train_rival
from condense.sparse import SparseModel
from condense.sparsetrain import make_optimizer, train_step
from condense.synthetic.universe import make_universe
from condense.tasks.descriptors import describe
from condense.tasks.finetune import LEVELS, finetune
from condense.teacher import TeacherRun

from toys import toy_cameras, toy_views  # isort: skip

PARAMS = PretrainParams(steps=4, warmup=1, generations=2, captures=2, views=2, cells=64, log_every=2)


class PointNet(nn.Module):
    """In place of the sparse U-Net, whose kernels cannot be pretended: every voxel for itself."""

    def __init__(self, in_channels=7, channels=(8,), out_channels=16, seed=0):
        super().__init__()
        self.channels, self.out_channels = tuple(channels), out_channels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Linear(in_channels, 32), BatchNorm(32), nn.ReLU(), nn.Linear(32, out_channels)
            )

    def forward(self, coords, features, shape, scenes):
        assert coords.device == features.device
        return self.layers(features)

    def with_lowest(self, coords, features, shape, scenes):
        output = self(coords, features, shape, scenes)
        return output, output[:, : self.channels[-1]].relu(), coords[:, 0].long()


@pytest.fixture
def pointwise(monkeypatch):
    monkeypatch.setattr("condense.model.SparseUNet", PointNet)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("links")
    teacher, paths = folder / "teacher.safetensors", [folder / f"{seed}.safetensors" for seed in range(3)]
    save_backbone(tiny_teacher(), teacher)
    for seed, path in enumerate(paths):
        save_links(toy_links(seed), path)
    return teacher, paths


def assert_same_history(folder, other):
    """Losses agree but for rounding: sums of a gradient's norm are in another order, which Adam amplifies."""
    ours, theirs = (json.loads((where / "history.json").read_text()) for where in (folder, other))
    assert len(ours) == len(theirs) > 1
    for row, expected in zip(ours, theirs, strict=True):
        assert row == pytest.approx(expected, rel=1e-2, abs=1e-2)


def test_the_pretended_device_refuses_what_cuda_refuses():
    with other_device():
        there, here = torch.ones(3, 2).to(DEVICE), torch.ones(3, 2)
        with pytest.raises(RuntimeError, match="two devices"):
            there + here
        with pytest.raises(RuntimeError, match="two devices"):
            here[there[:, 0].long()]
        with pytest.raises(RuntimeError):
            there.numpy()
        assert torch.zeros(2, device=there.device).device == there.device != here.device
        assert (there[torch.tensor([0, 2])] * 2).cpu().tolist() == [[2, 2], [2, 2]]


def test_without_cuda_it_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is CUDA")
    with pytest.raises(ValueError, match="device: cuda is set, and torch sees no CUDA device"):
        open_device("cuda")
    assert open_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("method", ["condense", "render_rgbd", "pixel_voxel", "distill"])
def test_pre_training(files, tmp_path, pointwise, method):
    teacher, paths = files
    params = dataclasses.replace(PARAMS, device=DEVICE)
    pretrain_seed(tmp_path / "here", paths, teacher, PARAMS, 0, method)
    with other_device():
        pretrain_seed(tmp_path / "there", paths, teacher, params, 0, method)
    assert_same_history(tmp_path / "there", tmp_path / "here")
    weights = load_file(tmp_path / "there" / "net3d.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())


@pytest.mark.parametrize("method", RIVALS)
def test_rivals(files, tmp_path, method):
    teacher, paths = files
    train_rival(tmp_path / "here", method, paths, teacher, PARAMS, 1e-3, 0)
    with other_device():
        train_rival(tmp_path / "there", method, paths, teacher, dataclasses.replace(PARAMS, device=DEVICE), 1e-3, 0)
    assert_same_history(tmp_path / "there", tmp_path / "here")


def test_key_points(pointwise):
    params = SparseParams(steps=2, warmup=1, captures=2, voxels=3000, samples=48, cells=64)
    captures = [toy_links(seed) for seed in range(2)]

    def trained(device):
        model = SparseModel(new_model(tiny_teacher(), 0)).to(device).train()
        optimizer = make_optimizer(model, params)
        steps = [train_step(model, optimizer, captures, params, 0, step) for step in range(2)]
        return [{name: float(term) for name, term in terms.items()} for terms in steps]

    expected = trained("cpu")
    with other_device():
        for terms, wanted in zip(trained(DEVICE), expected, strict=True):
            assert terms == pytest.approx(wanted, rel=1e-3)


def test_describing_images_and_scenes(pointwise):
    links = toy_links(0)
    known, (held, *_) = ([v for v in links.views if v.split == split] for split in ("train", "test"))

    def found(device):
        model = SparseModel(new_model(tiny_teacher(), 0)).eval().to(device)
        scene = condense_views(model, links.scene, known, 32)
        image = detect_image(model, held.image, held.mask, 16)
        dense = image_features(model.dense.student, [held.image])
        return [
            *scene.arrays.values(),
            *image.arrays.values(),
            dense.numpy(),
            describe(model.dense.net3d, [links.scene]),
        ]

    expected = found("cpu")
    with other_device():
        for one, other in zip(found(DEVICE), expected, strict=True):  # numpy reads what is on the CPU alone
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("level", LEVELS)
def test_fine_tuning(level):
    scenes = [toy_links(seed).scene for seed in range(3)]
    targets = [torch.tensor(seed) if level == "scene" else scene.coords[:, 2] % 3 for seed, scene in enumerate(scenes)]

    def predicted(device):
        net3d = PointNet().to(device)
        return finetune(net3d, scenes, targets, 3, steps=3, batch=2, lr=1e-3, seed=0, level=level).predict(scenes)

    expected = predicted("cpu")
    with other_device():
        found = predicted(DEVICE)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("masks", [True, False])
def test_fields(masks):
    views = box_views(8, 16)
    views = views if masks else dataclasses.replace(views, masks=None)
    params = dataclasses.replace(QUICK, steps=(3, 3))
    expected = fit_field(views, params, 0)
    with other_device():
        found = fit_field(views, params, 0, DEVICE)
    assert torch.equal(found.coords, expected.coords)
    torch.testing.assert_close(found.density, expected.density, rtol=1e-3, atol=1e-3)  # sums in another order


def test_links(tmp_path):
    scene, cameras = toy_scene(0), toy_cameras(3)
    views, splits = toy_views(scene, cameras), ["train", "train", "test"]
    expected = link_views("toy", {}, views, splits, scene, tiny_teacher(), 0.9)
    with other_device():
        network = tiny_teacher().to(DEVICE)
        assert device_of(network).type == DEVICE
        found = link_views("toy", {}, views, splits, scene, network, 0.9)
    torch.testing.assert_close(found.lifted, expected.lifted, rtol=0, atol=1e-3)
    for one, other in zip(found.views, expected.views, strict=True):
        torch.testing.assert_close(one.operator.dense(), other.operator.dense(), rtol=0, atol=1e-3)


def test_the_built_in_teacher():
    universe = make_universe(TINY.scenes, TINY.views, TINY.rooms, seed=1, processes=1)
    expected = TeacherRun(TINY, 0).train_step(universe)
    with other_device():
        run = TeacherRun(dataclasses.replace(TINY, device=DEVICE), 0)
        assert run.train_step(universe) == expected
        assert device_of(run.average).type == DEVICE


def test_a_network_is_loaded_on_the_cpu(files):
    assert device_of(load_backbone(files[0])) == torch.device("cpu")
