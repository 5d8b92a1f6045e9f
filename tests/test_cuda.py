"""What CUDA computes against plain twins on CPU; the nerfacc tests are in test_raymarch.py."""

import copy

import pytest
import torch
from test_backbone3d import (
    SCENES,
    SHAPE,
    dense_unet,
    dense_weight,
    densify,
    make_voxels,
    run_sparse,
    sparse_layer,
    sparsify,
)
from test_rayoperator import GRIDS, SIZE, make_cameras, make_scene
from torch.nn import functional
from toys import toy_scene

from condense.backbone3d import SparseUNet
from condense.devices import device_of
from condense.rayoperator import build_operator
from condense.spconv_cpu import load_spconv
from condense.tasks.descriptors import describe
from condense.tasks.finetune import finetune
from condense.voxels import VoxelScene

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def assert_near(actual, expected, share=1e-4):
    """Within a share of the largest value: sums of float32 products in another order."""
    torch.testing.assert_close(actual.cpu(), expected, rtol=0, atol=share * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["submanifold", "strided"])
def test_sparse_convolution_is_dense_convolution(kind, generator):
    coords, features, mask = make_voxels(generator, 3)
    layer = sparse_layer(kind, generator)
    weight = layer.weight.detach().clone().requires_grad_()
    stride, padding = (1, 1) if kind == "submanifold" else (2, 0)
    x = features.clone().requires_grad_()
    expected = functional.conv3d(densify(coords, x), dense_weight(weight), stride=stride, padding=padding)
    expected = expected * mask if kind == "submanifold" else expected
    cotangent = torch.randn(expected.shape, generator=generator)
    expected.backward(cotangent)

    layer, x_cuda = layer.cuda(), features.cuda().requires_grad_()
    y = layer(load_spconv().SparseConvTensor(x_cuda, coords.cuda(), SHAPE, SCENES)).dense()
    y.backward(cotangent.cuda())
    assert_near(y.detach(), expected.detach())
    assert_near(x_cuda.grad, x.grad)
    assert_near(layer.weight.grad, weight.grad)


def test_whole_unet_is_its_dense_twin(generator):
    coords, features, mask = make_voxels(generator, 5)
    model = SparseUNet(5, (16, 24, 32), 16, seed=3)
    on_cuda = copy.deepcopy(model).cuda()
    cotangent = torch.randn(len(coords), 16, generator=generator)
    x, x_cuda = features.clone().requires_grad_(), features.cuda().requires_grad_()
    expected = sparsify(dense_unet(model, densify(coords, x), mask), coords)
    expected.backward(cotangent)
    y = run_sparse(on_cuda, coords.cuda(), x_cuda)
    y.backward(cotangent.cuda())
    assert_near(y.detach(), expected.detach(), 1e-3)
    assert_near(x_cuda.grad, x.grad, 1e-3)
    for actual, wanted in zip(on_cuda.parameters(), model.parameters(), strict=True):
        assert_near(actual.grad, wanted.grad, 1e-3)


def test_benchmarks_describe_and_fine_tune_there():
    scenes, targets = [toy_scene(seed) for seed in range(4)], [torch.tensor(seed % 2) for seed in range(4)]
    net3d = SparseUNet(channels=(16, 24, 32), out_channels=16, seed=3)
    on_cuda = copy.deepcopy(net3d).cuda()
    assert_near(torch.from_numpy(describe(on_cuda, scenes)), torch.from_numpy(describe(net3d, scenes)), 1e-3)
    model = finetune(on_cuda, scenes, targets, 2, steps=20, batch=4, lr=1e-3, seed=0, level="scene")
    assert device_of(model).type == "cuda"
    assert all(torch.equal(found, wanted) for found, wanted in zip(model.predict(scenes), targets, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operator_matches_float64(dtype, generator):
    scene = make_scene(generator, GRIDS["bounded"])
    operator = build_operator(scene, make_cameras(), 0, SIZE, SIZE)
    features = torch.randn(len(scene), 7, generator=generator, dtype=torch.float64)
    cotangent = torch.randn(SIZE * SIZE, 7, generator=generator, dtype=torch.float64)
    x = features.to("cuda", dtype).requires_grad_()
    rendered = operator.to("cuda").render(x)
    rendered.backward(cotangent.to("cuda", dtype))
    share = 1e-6 if dtype == torch.float32 else 1e-12
    assert_near(rendered.detach().double(), operator.dense() @ features, share)
    assert_near(x.grad.double(), operator.dense().T @ cotangent, share)


@pytest.mark.parametrize("grid", list(GRIDS))
def test_operator_built_on_cuda_is_the_same(grid, generator):
    scene = make_scene(generator, GRIDS[grid])
    expected = build_operator(scene, make_cameras(), 0, SIZE, SIZE)
    single = VoxelScene(scene.coords, scene.density.float(), scene.colour.float(), scene.grid).to("cuda")
    operator = build_operator(single, make_cameras(), 0, SIZE, SIZE)
    # a sample within rounding of a cell's face may be taken by one and not by the other; it weighs little
    difference = (operator.dense().cpu() - expected.dense()).abs()
    assert difference.max() < 1e-2 and difference.sum(dim=1).mean() < 1e-3
