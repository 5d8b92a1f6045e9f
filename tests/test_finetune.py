import numpy as np
import pytest
import torch

from condense.backbone3d import SparseUNet
from condense.grid import Grid
from condense.tasks.finetune import FineTuned, finetune, frozen_features, schedule
from condense.voxels import VoxelScene

WIDTHS = (8, 12)  # of a small U-Net


def poles_and_plates(count=12, seed=0):
    """Grey scenes of 8 voxels a side: even ones a pole, odd ones a plate, at random places."""
    rng = np.random.default_rng(seed)
    scenes = []
    for number in range(count):
        volume = np.zeros((8, 8, 8), bool)
        x, y, z = rng.integers(1, 6, 3)
        if number % 2:
            volume[1:7, 1:7, z] = True
        else:
            volume[x : x + 2, y : y + 2] = True
        coords = torch.from_numpy(np.argwhere(volume)).int()
        colour = torch.full((len(coords), 3), 0.5)
        scenes.append(VoxelScene(coords, torch.full((len(coords),), 5.0), colour, Grid((0, 0, 0), 1.0, (8, 8, 8))))
    return scenes


def start():
    return SparseUNet(channels=WIDTHS, out_channels=8, seed=1)


def tuned(level, targets, scenes, steps=30, seed=0):
    classes = 2 if level == "scene" else 3
    return finetune(start(), scenes, targets, classes, steps=steps, batch=6, lr=3e-3, seed=seed, level=level)


def test_it_learns_what_a_scene_is():
    scenes, unseen = poles_and_plates(), poles_and_plates(seed=1)
    model = tuned("scene", [torch.tensor(number % 2) for number in range(12)], scenes)
    assert torch.stack(model.predict(unseen)).tolist() == [0, 1] * 6


def test_it_learns_voxels_from_the_few_that_are_labelled():
    """Class 1 is the lower half of a pole, 2 the upper; a tenth of the voxels of every other scene has a label."""
    scenes = poles_and_plates()[::2]
    truth = [(scene.coords[:, 2] >= 4).long() + 1 for scene in scenes]
    generator = torch.Generator().manual_seed(0)
    sparse = [t * (torch.rand(len(t), generator=generator) < 0.1) for t in truth]
    sparse[1] = torch.zeros_like(sparse[1])  # a scene without any label is no obstacle
    model = tuned("voxel", sparse, scenes, steps=40)
    predicted = torch.cat(model.predict(scenes))
    assert set(predicted.tolist()) <= {1, 2}  # 0 stands for "no label" and is never predicted
    assert (predicted == torch.cat(truth)).float().mean() > 0.9


def test_it_hangs_on_nothing_but_its_arguments():
    scenes, targets = poles_and_plates(), [torch.tensor(number % 2) for number in range(12)]
    net, before = start(), start().state_dict()
    models = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        np.random.seed(noise)
        models.append(finetune(net, scenes, targets, 2, steps=3, batch=6, lr=3e-3, seed=0, level="scene"))
    for first, second in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(first, second)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())  # a copy was trained
    other = tuned("scene", targets, scenes, steps=3, seed=1)
    assert not torch.equal(other.head.weight, models[0].head.weight)


def test_fewer_scenes_than_a_batch_are_all_taken():
    model = tuned("scene", [torch.tensor(0), torch.tensor(1)], poles_and_plates(2), steps=1)
    assert len(model.predict(poles_and_plates(2))) == 2


def test_frozen_features_at_hand_change_nothing():
    """Each scene's own features, whatever scenes they were worked out with; scenes without a label leave theirs out."""
    scenes = poles_and_plates(count=18)
    targets = [(scene.coords[:, 2] >= 4).long() + 1 for scene in scenes]
    targets[3] = torch.zeros_like(targets[3])
    frozen = frozen_features(start(), scenes, "voxel")
    assert [each.shape for each in frozen] == [(len(scene), 8) for scene in scenes]
    how = {"classes": 3, "steps": 0, "batch": 6, "lr": 3e-3, "seed": 0, "level": "voxel"}
    alone, given = (finetune(start(), scenes, targets, **how, frozen=known) for known in (None, frozen))
    torch.testing.assert_close(given.centre, alone.centre)
    torch.testing.assert_close(given.head.weight, alone.head.weight, rtol=0.05, atol=0.02)  # rows in another order


def test_a_silent_feature_is_not_blown_up():
    model = FineTuned(start(), 2, "voxel")
    frozen = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    frozen[:, 0] *= 1e-4
    model.start([frozen], [torch.arange(50) % 2])
    assert model.spread[0] == pytest.approx(0.5 * float(frozen.std(0, unbiased=False).median()))
    assert model.spread[1] == pytest.approx(float(frozen[:, 1].std(unbiased=False)))


def test_the_learning_rate_rises_and_falls():
    rates = [schedule(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1 and rates[-1] < 0.001
    assert schedule(0, 1) == 1  # a single step is taken in full


def test_what_cannot_be_learned_from_is_refused():
    scenes = poles_and_plates(2)
    with pytest.raises(ValueError, match="none of 2 scenes has a label"):
        tuned("voxel", [torch.zeros(len(scene), dtype=torch.int64) for scene in scenes], scenes)
    with pytest.raises(ValueError, match="target 0 has shape"):
        tuned("voxel", [torch.tensor(1)] * 2, scenes)
    with pytest.raises(ValueError, match="not one of"):
        finetune(start(), scenes, [torch.tensor(0)] * 2, 2, 1, 2, 1e-3, 0, "object")
