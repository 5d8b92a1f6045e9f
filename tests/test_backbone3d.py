"""Sparse convolution against dense convolution: values, input gradients, weight gradients."""

import pytest
import torch
from conftest import TOLERANCE
from threadpoolctl import threadpool_info
from torch import nn
from torch.nn import functional

from condense.backbone3d import SparseUNet, recalibrate_batch_norm
from condense.parallel import set_threads
from condense.spconv_cpu import algorithm, load_spconv

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="test_cuda.py tests spconv's CUDA build")

SHAPE, SCENES = (8, 8, 8), 2
TOLERANCES = TOLERANCE[torch.float32]


def make_voxels(generator, channels, share=0.3):
    """Coords [N, 4], features [N, channels] and the dense mask [B, 1, X, Y, Z] of a random batch."""
    mask = torch.rand(SCENES, *SHAPE, generator=generator) < share
    coords = mask.nonzero().int().contiguous()
    return coords, torch.randn(len(coords), channels, generator=generator), mask[:, None].float()


def densify(coords, features):
    """[B, C, X, Y, Z] with zeros where there is no voxel; differentiable."""
    dense = features.new_zeros(SCENES, *SHAPE, features.shape[1])
    return dense.index_put(tuple(coords.long().T), features).permute(0, 4, 1, 2, 3)


def sparsify(dense, coords):
    """[N, C] at the voxels."""
    return dense.permute(0, 2, 3, 4, 1)[tuple(coords.long().T)]


def dense_weight(weight):
    """spconv's [out, kx, ky, kz, in] as Conv3d's [out, in, kx, ky, kz]."""
    return weight.permute(0, 4, 1, 2, 3)


def sparse_layer(kind, generator):
    spconv = load_spconv()
    options = {"bias": False, "algo": algorithm()}
    layer = spconv.SubMConv3d(3, 5, 3, padding=1, **options) if kind == "submanifold" else None
    layer = layer or spconv.SparseConv3d(3, 5, 2, stride=2, **options)
    nn.init.normal_(layer.weight, generator=generator)
    return layer


@pytest.mark.parametrize("kind", ["submanifold", "strided"])
def test_sparse_convolution_is_dense_convolution(kind, generator):
    coords, features, mask = make_voxels(generator, 3)
    layer = sparse_layer(kind, generator)
    x = features.clone().requires_grad_()
    y = layer(load_spconv().SparseConvTensor(x, coords, SHAPE, SCENES)).dense()
    cotangent = torch.randn(y.shape, generator=generator)
    y.backward(cotangent)

    x_dense = features.clone().requires_grad_()
    weight = layer.weight.detach().clone().requires_grad_()
    stride, padding = (1, 1) if kind == "submanifold" else (2, 0)
    expected = functional.conv3d(densify(coords, x_dense), dense_weight(weight), stride=stride, padding=padding)
    if kind == "submanifold":
        expected = expected * mask  # a submanifold convolution adds no voxels
    expected.backward(cotangent)

    torch.testing.assert_close(y, expected, **TOLERANCES)
    torch.testing.assert_close(x.grad, x_dense.grad, **TOLERANCES)
    torch.testing.assert_close(layer.weight.grad, weight.grad, **TOLERANCES)


def dense_norm(norm, dense, mask):
    """Batch norm over the voxels present."""
    voxels = mask[:, 0].bool()
    rows = dense.permute(0, 2, 3, 4, 1)[voxels]
    out = torch.zeros_like(dense).permute(0, 2, 3, 4, 1)
    return out.masked_scatter(
        voxels[..., None], functional.batch_norm(rows, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
    ).permute(0, 4, 1, 2, 3)


def dense_unet(model, x, mask):
    """The U-Net with dense convolutions, its own weights and a mask at each level."""

    def same(conv, x, mask):
        return functional.conv3d(x, dense_weight(conv.weight), padding=1) * mask

    def block(part, x, mask):
        hidden = torch.relu(dense_norm(part.norm1, same(part.conv1, x, mask), mask))
        return torch.relu(x + dense_norm(part.norm2, same(part.conv2, hidden, mask), mask))

    masks, skips = [mask], []
    x = torch.relu(dense_norm(model.stem_norm, same(model.stem, x, mask), mask))
    for down, part in zip(model.down, model.encoder, strict=True):
        skips.append(x)
        masks.append(functional.max_pool3d(masks[-1], 2))
        x = functional.conv3d(x, dense_weight(down.conv.weight), stride=2)
        x = torch.relu(dense_norm(down.norm, x, masks[-1]))
        x = block(part, x, masks[-1])
    for level in reversed(range(len(model.up))):
        up = model.up[level]
        weight = up.conv.weight.permute(4, 0, 1, 2, 3)  # conv_transpose3d wants [in, out, kx, ky, kz]
        x = functional.conv_transpose3d(x, weight, stride=2) * masks[level]
        x = torch.relu(dense_norm(up.norm, x, masks[level])) + skips[level]
        x = block(model.decoder[level], x, masks[level])
    return functional.conv3d(x, model.head.weight[:, :, None, None, None], model.head.bias)


def run_sparse(model, coords, x):
    return model(coords, x, SHAPE, SCENES)


def test_whole_unet_is_its_dense_twin(generator):
    coords, features, mask = make_voxels(generator, 5)
    model = SparseUNet(5, (6, 8, 10), 7, seed=3)
    cotangent = torch.randn(len(coords), 7, generator=generator)
    results = []
    for dense in (False, True):
        model.zero_grad()
        x = features.clone().requires_grad_()
        y = sparsify(dense_unet(model, densify(coords, x), mask), coords) if dense else run_sparse(model, coords, x)
        y.backward(cotangent)
        results.append((y.detach(), x.grad, {name: p.grad.clone() for name, p in model.named_parameters()}))
    (y, x_grad, grads), (y_dense, x_grad_dense, grads_dense) = results
    # Errors add up over 13 layers and are divided by the norms: up to 3e-6 of the largest value was seen.
    for sparse, dense in [(y, y_dense), (x_grad, x_grad_dense), *((grads[n], grads_dense[n]) for n in grads)]:
        torch.testing.assert_close(sparse, dense, rtol=0, atol=2e-5 * float(dense.abs().max()))


def test_threads_do_not_change_the_result(generator):
    coords, features, _ = make_voxels(generator, 3)
    layer = sparse_layer("submanifold", generator)

    def run():
        x = features.clone().requires_grad_()
        y = layer(load_spconv().SparseConvTensor(x, coords, SHAPE, SCENES)).features
        y.square().sum().backward()
        return torch.cat([y.detach().flatten(), x.grad.flatten()])

    one = run()
    set_threads(2)
    try:
        # spconv's own scatter-add, not kept on one thread, fails within 60 runs
        worst = max(float((run() - one).abs().max()) for _ in range(60))
        assert {library["num_threads"] for library in threadpool_info()} == {2}  # as they were
    finally:
        set_threads(1)
    assert worst < 1e-3


def test_same_seed_same_bytes(generator):
    coords, features, _ = make_voxels(generator, 5)

    def run():
        model = SparseUNet(5, (8, 8), 4, seed=1)
        y = model(coords, features, SHAPE, SCENES)
        y.square().sum().backward()
        return [y.detach(), *(p.grad for p in model.parameters())]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))
    other = SparseUNet(5, (8, 8), 4, seed=2)
    assert not torch.equal(other.stem.weight, SparseUNet(5, (8, 8), 4, seed=1).stem.weight)


def test_a_batch_is_its_scenes(generator):
    coords, features, _ = make_voxels(generator, 5)
    model = SparseUNet(5, (8, 8, 8), 4).eval()
    y = model(coords, features, SHAPE, SCENES)
    for scene in range(SCENES):
        rows = coords[:, 0] == scene
        alone = coords[rows].clone()
        alone[:, 0] = 0
        torch.testing.assert_close(model(alone, features[rows], SHAPE, 1), y[rows], **TOLERANCES)


def test_coords_need_not_be_contiguous(generator):
    coords, features, _ = make_voxels(generator, 5)
    model = SparseUNet(5, (4, 4), 3)
    assert torch.equal(run_sparse(model, coords.T.contiguous().T, features), run_sparse(model, coords, features))


def test_odd_grids_lose_no_voxel():
    coords = torch.tensor([[0, 4, 4, 4], [0, 4, 4, 3]], dtype=torch.int32)  # the last layer of a grid of 5
    model = SparseUNet(1, (4, 4), 3).eval()
    y = model(coords, torch.ones(2, 1), (5, 5, 5), 1)
    moved = model(coords - torch.tensor([0, 4, 4, 2], dtype=torch.int32), torch.ones(2, 1), (6, 6, 6), 1)
    torch.testing.assert_close(y, moved, **TOLERANCES)


def test_nothing_to_work_on_is_a_clear_error():
    with pytest.raises(ValueError, match="at least one voxel"):
        SparseUNet(5, (4, 4), 3)(torch.zeros(0, 4, dtype=torch.int32), torch.zeros(0, 5), SHAPE, 1)
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(2, 5\)"):
        SparseUNet(5, (4, 4), 3)(torch.zeros(3, 4, dtype=torch.int32), torch.zeros(2, 5), SHAPE, 1)


def test_recalibration_matches_the_data(generator):
    batches = [make_voxels(generator, 5)[:2] for _ in range(3)]
    model = SparseUNet(5, (6, 6), 4)
    recalibrate_batch_norm(model, ((coords, x, SHAPE, SCENES) for coords, x in batches))
    assert not model.training and model.stem_norm.momentum == 0.1
    stems = [model.stem(load_spconv().SparseConvTensor(x, c, SHAPE, SCENES)).features for c, x in batches]
    means = torch.stack([stem.detach().mean(dim=0) for stem in stems]).mean(dim=0)
    torch.testing.assert_close(model.stem_norm.running_mean, means, **TOLERANCES)
