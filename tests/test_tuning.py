"""Lower precision, recomputed activations and low-rank tuning, of a small DINOv2 and of the built-in network."""

import copy
import dataclasses

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from toys import tiny_teacher, toy_links

from condense.backbone2d import BackboneError, TransformersBackbone, load_backbone, save_backbone
from condense.backbone3d import load_net3d
from condense.links import save_links
from condense.params import PretrainParams
from condense.pretrain import pretrain_seed, scratch_seed
from condense.tuning import merged, prepare

PARAMS = PretrainParams(steps=4, warmup=1, generations=2, captures=2, views=2, cells=64, log_every=1, lora_rank=2)


@pytest.fixture(scope="module")
def dinov2():
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    return TransformersBackbone(Dinov2Model(Dinov2Config(image_size=28, patch_size=14, **sizes)))


@pytest.fixture
def images(generator):
    return torch.rand(2, 3, 42, 28, generator=generator)


def gradients(network, images):
    network.train()
    network(images).square().mean().backward()
    return {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}


def test_recomputed_activations_give_the_same_gradients(dinov2, images):
    plain, frugal = copy.deepcopy(dinov2), copy.deepcopy(dinov2)
    prepare(frugal, dataclasses.replace(PARAMS, recompute=True), 0)
    calls = []
    frugal.model.encoder.layer[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    expected, found = gradients(plain, images), gradients(frugal, images)
    assert len(calls) == 2  # forward, and again going backward
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_a_network_that_cannot_recompute_says_so():
    with pytest.raises(BackboneError, match="set pretrain: recompute: false"):
        prepare(tiny_teacher(), dataclasses.replace(PARAMS, recompute=True), 0)


def test_bfloat16_is_near_and_comes_out_as_float32(dinov2, images):
    low = copy.deepcopy(dinov2)
    prepare(low, dataclasses.replace(PARAMS, precision="bfloat16"), 0)
    expected, found = dinov2.eval()(images), low.eval()(images)
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    assert (found - expected).norm() < 0.02 * expected.norm()  # bfloat16 has three digits
    assert all(grad.dtype == torch.float32 for grad in gradients(low, images).values())


@pytest.mark.parametrize("setting", [{"precision": "float16"}, {"tuning": "half"}])
def test_unknown_settings_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting.values()))):
        prepare(tiny_teacher(), dataclasses.replace(PARAMS, **setting), 0)


def test_low_rank_tuning_trains_little_and_merges_exactly(dinov2, images):
    tuned = copy.deepcopy(dinov2)
    prepare(tuned, dataclasses.replace(PARAMS, tuning="lora"), 0)
    torch.testing.assert_close(tuned.eval()(images), dinov2.eval()(images))  # nothing is changed at first
    trained = [weight for weight in tuned.parameters() if weight.requires_grad]
    linear = [module for module in dinov2.modules() if isinstance(module, nn.Linear)]
    assert sum(map(torch.numel, trained)) == sum(2 * (m.in_features + m.out_features) for m in linear)
    for weight in trained:
        nn.init.normal_(weight, std=0.1)
    expected = tuned(images)
    assert (expected - dinov2(images)).abs().max() > 0.1
    whole = merged(tuned)
    assert set(whole.state_dict()) == set(dinov2.state_dict())
    torch.testing.assert_close(whole(images), expected, rtol=1e-4, atol=1e-4)


def test_a_network_without_linear_layers_cannot_be_tuned_in_part():
    network = tiny_teacher()
    network.blocks = nn.Sequential()
    with pytest.raises(BackboneError, match="no linear layers"):
        prepare(network, dataclasses.replace(PARAMS, tuning="lora"), 0)


def test_pre_training_with_a_large_networks_settings_resumes(tmp_path):
    teacher, paths = tmp_path / "teacher.safetensors", [tmp_path / f"{seed}.safetensors" for seed in range(2)]
    save_backbone(tiny_teacher(), teacher)
    for seed, path in enumerate(paths):
        save_links(toy_links(seed), path)
    params = dataclasses.replace(
        PARAMS, tuning="lora", precision="bfloat16", channels=(16, 24), generations=1, checkpoint_every=2
    )
    pretrain_seed(tmp_path / "whole", paths, teacher, params, 0)
    for stop in (2, None):
        pretrain_seed(tmp_path / "halves", paths, teacher, params, 0, stop=stop)
    for name in ("net3d", "student"):
        whole, halves = (load_file(tmp_path / which / f"{name}.safetensors") for which in ("whole", "halves"))
        assert all(torch.equal(whole[key], halves[key]) for key in whole)
    assert load_net3d(tmp_path / "whole").channels == (16, 24)
    before, after = load_backbone(teacher).state_dict(), load_backbone(tmp_path / "whole" / "student.safetensors")
    changed = {name for name, value in after.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.rpartition(".")[0].rpartition(".")[2] in ("qkv", "out", "0", "2") for name in changed)


def test_the_untrained_network_is_as_wide(tmp_path):
    teacher, path = tmp_path / "teacher.safetensors", tmp_path / "links.safetensors"
    save_backbone(tiny_teacher(), teacher)
    save_links(toy_links(0), path)
    assert load_net3d(scratch_seed(tmp_path / "scratch", [path], teacher, 0, (8, 16))).channels == (8, 16)
