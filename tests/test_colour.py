import pytest
import torch

from condense.colour import COLOUR_WIDTHS, oklab, with_colour


def test_colours_stand_beside_features():
    red, green, orange = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0.2, 0]])
    told = with_colour(torch.tensor([[3.0, 0], [3, 0], [0, 1], [3, 0]]), torch.stack([red, green, red, orange]))
    torch.testing.assert_close(told.norm(dim=1), torch.ones(4))
    same, other, feature, near = (told[0] @ told.T).tolist()  # cosine of features and of colours, in equal shares
    assert same == pytest.approx(1) and feature == pytest.approx(0.5)
    assert other == pytest.approx(0.5, abs=0.1) and 0.75 < near < 0.99  # of colours without likeness about 0


def test_likeness_of_colours_is_about_a_gaussian():
    colours = torch.rand(400, 3, generator=torch.Generator().manual_seed(0))
    told = with_colour(torch.zeros(400, 1), colours) * 2**0.5
    apart = (oklab(colours) / torch.tensor(COLOUR_WIDTHS))[:, None] - (oklab(colours) / torch.tensor(COLOUR_WIDTHS))
    wanted = torch.exp(-apart.square().sum(-1) / 2)
    assert (told @ told.T - wanted).abs().mean() < 0.1 and (told @ told.T - wanted)[wanted > 0.7].abs().max() < 0.1


def test_oklab_agrees_with_published_values():
    colours = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])  # of Ottosson's text
    wanted = [[1, 0, 0], [0.628, 0.225, 0.126], [0.866, -0.234, 0.179], [0.452, -0.032, -0.312], [0, 0, 0]]
    torch.testing.assert_close(oklab(colours), torch.tensor(wanted), rtol=0, atol=1e-3)
