import dataclasses

import pytest
import torch
from test_posealign import camera, lopsided, photograph

from condense.lookalikes import chromaticity, evidence, laid_over, standings, unlikeness
from condense.posealign import LEVELS, Photograph, Renderer, Renderers, find_pose, look
from condense.poses import pose_errors


def twin():
    """`lopsided`, with a blue block for the red one."""
    scene = lopsided()
    block = torch.tensor([0.1, 0.2, 0.9]).where((scene.colour[:, :1] == 0.9).expand(-1, 3), scene.colour)
    return dataclasses.replace(scene, colour=block)


def told(truth, first, second):
    seen = chromaticity(truth[1:])
    return evidence(unlikeness(first, seen), unlikeness(second, seen), torch.minimum(first[0], second[0]))


def test_evidence_by_hand():
    """A grey wall with one patch: red in truth, as the first scene has it and not the second, which is blue there."""
    red, blue = torch.tensor([0.8, 0.1, 0.1]), torch.tensor([0.1, 0.1, 0.8])
    truth = torch.full((4, 64, 64), 0.5)
    truth[0] = 1.0
    first, second = truth.clone(), truth.clone()
    for image, colour in ((truth, red), (first, red), (second, blue)):
        image[1:, 30:36, 30:36] = colour[:, None, None]
    assert told(truth, first, second) == -told(truth, second, first) > 0.9
    assert told(truth, first, first) == 0
    dim = first.clone()
    dim[1:] *= 0.6
    assert told(truth, dim, second) > 0.8  # light that is other everywhere does not count
    hidden = second.clone()
    hidden[0] = 0  # what one of them does not show, counts for none
    assert told(truth, first, hidden) == 0


def test_chromaticity_knows_no_brightness_and_no_colour_cast():
    colour = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0)) + 1
    torch.testing.assert_close(chromaticity(3 * colour), chromaticity(colour), atol=0.02, rtol=0)
    assert chromaticity(torch.full((3, 20, 20), 0.4)).abs().max() < 1e-6


def test_a_scene_stands_before_its_twin_in_another_light():
    scene, cameras = lopsided(), camera([1.7, 0.6, 0.8])
    shot = photograph(scene, cameras, gain=(0.8, 0.6, 0.5), offset=0.05)
    T = cameras.T_world_from_camera[0]
    shown = [laid_over(shot, Renderers(each), T) for each in (scene, twin())]
    assert shown[0].shape == (4, 64, 64)
    stand = standings(shot, shown, [0.01, 0.01])
    assert stand[0] == pytest.approx(-stand[1]) and stand[0] > 0.4
    assert standings(shot, shown, [0.03, 0.01])[0] == pytest.approx(stand[0] - 0.5)
    assert standings(shot, shown[:1], [0.01]) == [2.0] and standings(shot, [], []) == []


def test_what_lies_beyond_an_uncut_photograph_does_not_pull_the_camera():
    """Without a mask the ground behind the box is part of the image; its opacity is no evidence."""
    scene, cameras = lopsided(), camera([1.7, 0.6, 0.8])
    cut = photograph(scene, cameras)
    whole = Photograph(cut.image, torch.full_like(cut.mask, 255), cut.K)
    T = cameras.T_world_from_camera
    for level in LEVELS[3:]:
        true = look(T[:, :3, :3], T[:, :3, 3], Renderer(scene), whole.on(level), level.outlier)
        assert float(true.cost) < 0.02
        assert (true.image[:, 0] == 1).all()
    start = camera([1.65, 0.65, 0.75]).T_world_from_camera
    found, cost = find_pose(whole, Renderers(scene), start[:, :3, :3], start[:, :3, 3], LEVELS[3:])
    degrees, distance = pose_errors(found, T[0])
    assert degrees < 3 and distance < 0.1 and cost < 0.02
