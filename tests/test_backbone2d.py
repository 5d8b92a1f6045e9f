import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    MobileNetV2Config,
    MobileNetV2Model,
)

from condense.backbone2d import (
    BackboneError,
    BuiltinBackbone,
    BuiltinConfig,
    FeatureStatistics,
    TransformersBackbone,
    load_backbone,
    open_backbone,
    save_backbone,
)

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
CNN = {"depth_multiplier": 0.35, "image_size": 64}


def images(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def tiny_vit(registers: int) -> nn.Module:
    torch.manual_seed(0)
    if registers:
        return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**VIT, num_register_tokens=registers))
    return Dinov2Model(Dinov2Config(**VIT))


def tiny_cnn() -> nn.Module:
    torch.manual_seed(0)
    return MobileNetV2Model(MobileNetV2Config(**CNN))


class TestBuiltin:
    @pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 96), (64, 100), (20, 36)])
    def test_one_cell_per_four_pixels(self, height, width):
        assert BuiltinBackbone()(images(2, height, width)).shape == (2, 64, height // 4, width // 4)

    def test_size_between_strides_is_resampled(self):
        assert BuiltinBackbone()(images(1, 65, 63)).shape == (1, 64, 16, 16)

    def test_parameter_count(self):
        assert 0.5e6 < sum(p.numel() for p in BuiltinBackbone().parameters()) < 0.8e6

    def test_seed_alone_decides_the_weights(self):
        torch.manual_seed(5)
        before = torch.random.get_rng_state()
        first, second = (BuiltinBackbone(seed=3)(images(1, 32, 32)) for _ in range(2))
        assert torch.equal(first, second)
        assert torch.equal(before, torch.random.get_rng_state())

    def test_every_parameter_gets_a_gradient(self):
        network = BuiltinBackbone()
        network(images(1, 32, 32)).square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())

    def test_sees_across_the_whole_image(self):
        x = images(1, 64, 64).requires_grad_()
        BuiltinBackbone()(x)[0, :, 0, 0].sum().backward()
        assert x.grad is not None
        assert (x.grad[0, :, 60:, 60:] != 0).any()

    def test_refuses_bytes(self):
        with pytest.raises(ValueError, match="uint8"):
            BuiltinBackbone()(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


class TestTransformers:
    @pytest.mark.parametrize("registers", [0, 4])
    def test_vit_grid_is_its_patch_tokens(self, registers, tmp_path):
        model = tiny_vit(registers).eval()
        model.save_pretrained(tmp_path)
        network = TransformersBackbone.from_pretrained(str(tmp_path)).eval()
        assert (network.dim, network.stride) == (32, 14)
        x = images(2, 42, 70)  # another size than it was made for: 3 x 5 patches
        mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        tokens = model((x - mean) / std).last_hidden_state[:, 1 + registers :]  # [2, 15, 32]
        features = network(x)
        assert features.shape == (2, 32, 3, 5)
        assert torch.allclose(features[1, :, 2, 4], tokens[1, 14], atol=1e-5)
        assert torch.allclose(features[0, :, 1, 0], tokens[0, 5], atol=1e-5)

    def test_preprocessor_configuration_is_used(self, tmp_path):
        tiny_vit(0).save_pretrained(tmp_path)
        settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
        network = TransformersBackbone.from_pretrained(str(tmp_path))
        assert network.mean == (0.1, 0.2, 0.3)
        assert network.std == (0.4, 0.5, 0.6)

    def test_cnn_layer_and_truncation(self, tmp_path):
        model = tiny_cnn().eval()
        model.save_pretrained(tmp_path)
        network = TransformersBackbone.from_pretrained(str(tmp_path), layer=5)
        x = images(1, 64, 96)
        expected = model(x * 2 - 1, output_hidden_states=True).hidden_states[5]
        assert torch.allclose(network(x), expected, atol=1e-5)
        assert network.stride == 64 // expected.shape[2]
        assert len(network.model.layer) == 6

    def test_batch_norms_of_a_student_stay_fixed(self):
        student = copy.deepcopy(TransformersBackbone(tiny_cnn(), layer=3)).train()
        before = {name: value.clone() for name, value in student.named_buffers()}
        student(images(2, 64, 64)).square().mean().backward()
        assert all(torch.equal(value, before[name]) for name, value in student.named_buffers())
        assert all(p.grad is not None for p in student.parameters())

    def test_wrong_folders_say_what_to_do(self, tmp_path):
        with pytest.raises(BackboneError, match="no such folder"):
            TransformersBackbone.from_pretrained(str(tmp_path / "absent"))
        with pytest.raises(BackboneError, match=r"config\.json is missing"):
            TransformersBackbone.from_pretrained(str(tmp_path))
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
        with pytest.raises(BackboneError, match=r"pickled weights are not read.*save_pretrained"):
            TransformersBackbone.from_pretrained(str(tmp_path))

    def test_layer_out_of_range(self):
        with pytest.raises(BackboneError, match="hidden states 0 to 2, not 9"):
            TransformersBackbone(tiny_vit(0), layer=9)

    def test_real_mobilenet(self, shared: Path):
        network = open_backbone(str(shared / "weights" / "mobilenet_v2_imagenet"), layer=8)
        assert (network.dim, network.stride) == (64, 16)
        assert network(images(1, 135, 240)).shape == (1, 64, 8, 15)


class TestFiles:
    @pytest.mark.parametrize("make", [BuiltinBackbone, lambda: TransformersBackbone(tiny_cnn(), layer=5)])
    def test_round_trip(self, make, tmp_path):
        network, x = make().eval(), images(2, 64, 64)
        network.standardise(FeatureStatistics.of(network(x)))
        save_backbone(network, tmp_path / "teacher.safetensors")
        again = load_backbone(tmp_path / "teacher.safetensors").eval()
        assert torch.equal(network(x), again(x))
        assert sorted(p.name for p in tmp_path.iterdir()) == ["teacher.json", "teacher.safetensors"]

    def test_missing_and_foreign_files(self, tmp_path):
        path = tmp_path / "teacher.safetensors"
        with pytest.raises(BackboneError, match=r"teacher\.safetensors is missing"):
            load_backbone(path)
        save_backbone(BuiltinBackbone(), path)
        sidecar = path.with_suffix(".json")
        sidecar.write_text(sidecar.read_text().replace('"width": 112', '"width": 96'))
        with pytest.raises(BackboneError, match="does not fit"):
            load_backbone(path)

    def test_a_pickle_is_refused(self, tmp_path):
        path = tmp_path / "teacher.safetensors"
        save_backbone(BuiltinBackbone(), path)
        torch.save({"weights": torch.zeros(1)}, path)
        with pytest.raises(Exception, match="header"):
            load_backbone(path)


def test_standardised_features_have_zero_mean_and_unit_deviation():
    network, x = BuiltinBackbone(BuiltinConfig(width=32, blocks=1)), images(4, 32, 32)
    network.standardise(FeatureStatistics.of(network(x)))
    std, mean = torch.std_mean(network(x), dim=(0, 2, 3), correction=0)
    assert torch.allclose(mean, torch.zeros(64), atol=1e-4)
    assert torch.allclose(std, torch.ones(64), atol=1e-3)
