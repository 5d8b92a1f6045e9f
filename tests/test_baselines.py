import dataclasses

import pytest
import torch
from toys import tiny_teacher, toy_links

from condense.backbone2d import save_backbone
from condense.backbone3d import load_net3d
from condense.baselines import make_decoder, render_rgbd
from condense.batches import draw_batch
from condense.links import load_links, save_links
from condense.model import new_model
from condense.params import PretrainParams
from condense.pretrain import METHODS, pretrain_seed

PARAMS = PretrainParams(steps=30, warmup=2, captures=3, views=2, cells=64, log_every=30, net3d_lr=1e-2)
BASELINES = [name for name in METHODS if name != "condense"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("links")
    save_backbone(tiny_teacher(), folder / "teacher.safetensors")
    paths = [folder / f"{seed}.safetensors" for seed in range(3)]
    for seed, path in enumerate(paths):
        save_links(toy_links(seed), path)
    return folder / "teacher.safetensors", paths


def first_step(paths, method, model):
    batch = draw_batch([load_links(path) for path in paths], PARAMS, 0, 0)
    return METHODS[method](model, batch, PARAMS, torch.Generator().manual_seed(0))[0]


@pytest.mark.parametrize("method", BASELINES)
def test_trains_the_3d_network_alone_and_resumes(files, tmp_path, method):
    teacher, paths = files
    straight = pretrain_seed(tmp_path / "straight", paths, teacher, PARAMS, 0, method)
    broken = pretrain_seed(tmp_path / "broken", paths, teacher, PARAMS, 0, method, stop=17)
    pretrain_seed(broken, paths, teacher, PARAMS, 0, method)
    names = sorted(path.name for path in straight.iterdir())
    assert names == ["history.json", "net3d.json", "net3d.safetensors"]
    assert all((straight / name).read_bytes() == (broken / name).read_bytes() for name in names)
    decoder = make_decoder(16, 0)
    untrained, trained = new_model(tiny_teacher(), 0, decoder), new_model(tiny_teacher(), 0, decoder)
    trained.net3d = load_net3d(straight)
    before, after = (first_step(paths, method, model.train()) for model in (untrained, trained))
    if method != "render_rgbd":  # its decoder is not kept
        assert after["cells"] < 0.9 * before["cells"]
    sum(before.values()).backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in untrained.net3d.parameters())
    assert all(p.grad is None for p in untrained.student.parameters())


def test_colour_and_depth_are_the_surface_s():
    """A decoder that returns what it should render has no loss: targets and rows belong together."""
    links = toy_links(1)  # a box
    batch = draw_batch([links], dataclasses.replace(PARAMS, views=4), 0, 0)

    class Truth(torch.nn.Module):
        def forward(self, values):
            self.directions = values[:, -3:]
            return torch.zeros(len(values), 4)

    model = new_model(tiny_teacher(), 0, Truth())
    terms, _ = render_rgbd(model, batch, dataclasses.replace(PARAMS, cells=10**6), torch.Generator())
    directions = model.decoder.directions
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(len(directions)))
    # seen from outside, the surface lies before the middle of the scene: depth is about minus half a side
    assert 0.1 < float(terms["depth"]) < 0.5
    mean = torch.cat([view.operator.render(links.scene.colour) for view in batch.views[0]])
    assert float(terms["colour"]) == pytest.approx(float(mean[batch.operator.opacity >= 0.5].mean()), abs=0.08)
