import dataclasses

import pytest
import torch
from toys import tiny_teacher, toy_links

from condense.backbone2d import save_backbone
from condense.batches import draw_batch
from condense.joint import losses, total_loss
from condense.links import as_batch, save_links
from condense.losses import prior_loss
from condense.model import new_model, student_cells
from condense.params import PretrainParams
from condense.rivals2d import (
    Denoised,
    contrast_loss,
    fit,
    load_image_network,
    mean_artefact,
    rival_loss,
    train_rival,
    without_artefact,
)

PARAMS = PretrainParams(
    steps=30, warmup=2, captures=2, voxels=2000, views=1, recolour=0.0, recolour_images=0.0, log_every=10
)


@pytest.fixture(scope="module")
def captures():
    return [toy_links(seed, views=6, test=2) for seed in range(2)]


def test_denoised_starts_as_the_frozen_network_minus_the_artefact():
    network, artefact = tiny_teacher(), torch.full((16, 4, 4), 0.5)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    cleaned = Denoised(network, artefact).train()
    torch.testing.assert_close(cleaned(images), network(images) - 0.5)
    cleaned(images).sum().backward()
    assert all(parameter.grad is None for parameter in network.parameters())
    assert any(parameter.grad is not None for parameter in cleaned.block.parameters())


def test_mean_artefact_finds_what_is_added_at_one_position(captures):
    """Adding to one cell of every view changes the mean error there, and hardly elsewhere."""

    def stained(links):
        views = []
        for view in links.views:
            teacher = view.teacher.clone().float()
            teacher[3 * 8 + 4] += 8
            views.append(dataclasses.replace(view, teacher=teacher.half()))
        return dataclasses.replace(links, views=tuple(views))

    change = mean_artefact([stained(links) for links in captures]) - mean_artefact(captures)
    assert change.shape == (16, 8, 8)
    seen = sum(float(view.operator.opacity[3 * 8 + 4] >= 0.5) for links in captures for view in links.views)
    torch.testing.assert_close(change[:, 3, 4], torch.full((16,), 8 * seen / (seen + 20)), rtol=1e-2, atol=1e-2)
    others = change.clone()
    others[:, 3, 4] = 0
    assert others.abs().max() < 1e-2


def test_maps_of_other_sizes_share_one_artefact(captures):
    wide = toy_links(1, views=3, test=0, width=48, height=24)
    assert wide.views[0].cells == (6, 12)
    artefact = mean_artefact([captures[0], wide])
    assert artefact.shape == (16, 8, 8) and artefact.isfinite().all()
    assert not torch.allclose(artefact, mean_artefact(captures[:1]))
    assert without_artefact(wide, artefact).lifted.shape == wide.lifted.shape


def test_without_artefact_lifts_cleaned_cells(captures):
    links = dataclasses.replace(captures[0], views=captures[0].views[:4])  # its training views
    cleaned = without_artefact(links, torch.full((16, 3, 3), 0.25))
    seen = links.seen > 0.01
    torch.testing.assert_close(cleaned.lifted[seen], links.lifted[seen] - 0.25, rtol=1e-2, atol=1e-2)


def test_loss_is_the_prior_term_of_solid_cells_and_weighed_others(captures):
    network = tiny_teacher()
    batch = draw_batch(captures, PARAMS, 0, 0)
    dense, cells = batch.operator.dense(), student_cells(network, batch.images)
    solid = dense.sum(1) >= 0.5
    target = (dense @ batch.lifted)[solid] / dense.sum(1)[solid, None]
    expected = prior_loss(cells[solid], target) + 0.5 * prior_loss(cells[~solid], batch.teacher[~solid])
    torch.testing.assert_close(rival_loss(network, batch, 0.5), expected)


def test_contrast_is_the_joint_loss_without_the_3d_network(captures):
    params = dataclasses.replace(PARAMS, student_views=1, cells_weight=0.0, voxels_weight=0.0, agree_weight=0.0)
    model, batch = new_model(tiny_teacher(), 0), draw_batch(captures, params, 0, 0)
    terms, _ = losses(model, batch, dataclasses.replace(params, cells=10_000), torch.Generator())
    ours = contrast_loss(model.student, batch, dataclasses.replace(params, cells=10_000), torch.Generator())
    torch.testing.assert_close(ours, total_loss(terms, params))


@pytest.mark.parametrize("method", ["fit3d", "contrast", "dvt"])
def test_training_comes_nearer_to_lifted_features_and_files_give_the_network_back(tmp_path, captures, method):
    save_backbone(tiny_teacher(), tmp_path / "teacher.safetensors")
    paths = [tmp_path / f"{links.name}.safetensors" for links in captures]
    for links, path in zip(captures, paths, strict=True):
        save_links(links, path)
    job = (method, paths, tmp_path / "teacher.safetensors", PARAMS, 3e-3, 0)
    folder = train_rival(tmp_path / method, *job)
    network = load_image_network(folder, tmp_path / "teacher.safetensors")
    again = load_image_network(train_rival(tmp_path / "again", *job), tmp_path / "teacher.safetensors")
    batch, images = draw_batch(captures, PARAMS, 1, 0), as_batch([captures[0].views[0].image])
    with torch.no_grad():
        assert rival_loss(network, batch, 0.25) < rival_loss(tiny_teacher(), batch, 0.25)
        assert torch.equal(network(images), again(images))


def test_training_a_denoiser_leaves_the_frozen_network_alone(captures):
    network = tiny_teacher()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    history = fit(Denoised(network, torch.zeros(16, 8, 8)), captures, PARAMS, 1e-2, 0)
    assert [row["step"] for row in history] == [10, 20, 30]
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_load_of_no_folder_is_the_frozen_network(tmp_path):
    save_backbone(tiny_teacher(), tmp_path / "teacher.safetensors")
    network, image = load_image_network(None, tmp_path / "teacher.safetensors"), torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(network(image), tiny_teacher()(image))


def test_another_method(tmp_path):
    with pytest.raises(ValueError, match=r"'dino'.*fit3d, contrast, dvt"):
        train_rival(tmp_path, "dino", [], tmp_path, PARAMS, 1e-3, 0)
