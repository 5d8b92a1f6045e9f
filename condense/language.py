"""Text and scenes in one space: a small map, learned from captions, over frozen sentences and frozen features.

A caption falls into phrases. A phrase is compared with a scene twice: with its single features, of which the most
similar count most, and with their mean. One map serves voxels, cells of images and key points, whose features share a
space already. It is learned contrastively (Radford et al. 2021) from which captions, and which of their words, belong
to which capture: no label of a part or a pixel is used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, softplus

from condense.params import LanguageParams
from condense.paths import write_atomically
from condense.ranking import pool
from condense.text import SentenceEncoder

NUMBERS = "no|one|two|three|four|five|six"
# An "and" within "a green and white striped leg" does not part phrases: what follows it there is no article or number.
_BETWEEN = re.compile(
    rf"\s*(?:[,:;.]|\b(?:with|which|that|has|have|in)\b|\band\b(?=\s+(?:a|an|the|{NUMBERS})\b))\s*", re.IGNORECASE
)
REFERENCE = 1024  # features of training captures that the heat of a phrase is compared with


@dataclass(frozen=True)
class Bank:
    """Scenes as few features each.

    Args:
        centres: [S, K, D] unit vectors.
        shares: [S, K] of the scene's features that are nearest to each; 0 where a scene has fewer centres.
        means: [S, D] mean of all features of a scene.
    """

    centres: Tensor
    shares: Tensor
    means: Tensor

    def __getitem__(self, rows: Tensor | NDArray[np.integer]) -> Bank:
        """Some of the scenes."""
        return Bank(self.centres[rows], self.shares[rows], self.means[rows])


def bank(features: Sequence[Tensor], centres: int) -> Bank:
    """Condenses each scene's features [N, D] to the centres of spherical k-means.

    Raises:
        ValueError: a scene has no features.
    """
    found, shares, means = [], [], []
    for number, values in enumerate(features):
        if not len(values):
            raise ValueError(f"scene {number} has no features: leave it out, or look at its masks")
        unit = normalize(values.float(), dim=1)
        middle = pool(unit, torch.ones(len(unit)), centres, rounds=6) if centres > 1 else normalize(unit.mean(0)[None])
        count = torch.bincount((unit @ middle.T).argmax(dim=1), minlength=centres)
        found.append(middle)
        shares.append(count / count.sum())
        means.append(unit.mean(0))
    return Bank(torch.stack(found), torch.stack(shares), torch.stack(means))


def phrases(text: str) -> list[str]:
    """The parts of a caption that say one thing each; the caption itself where it does not fall apart."""
    parts = [part.strip() for part in _BETWEEN.split(text)]
    return [part for part in parts if part] or [text]


def vocabulary(captions: Sequence[Sequence[str]]) -> dict[str, set[int]]:
    """{word: the captures whose captions have it}, without words that all have."""
    found: dict[str, set[int]] = {}
    for number, some in enumerate(captions):
        for word in {word for text in some for word in re.findall(r"[^\W_]+", text.lower())}:
            found.setdefault(word, set()).add(number)
    return {word: owners for word, owners in sorted(found.items()) if len(owners) < len(captions)}


def encode_phrases(encoder: SentenceEncoder, texts: Sequence[str]) -> dict[str, Tensor]:
    """{text: [P, T] vectors of its phrases}; each different phrase is encoded once.

    Raises:
        ValueError: a text is empty or blank.
    """
    parts = {text: phrases(text) for text in texts}
    unique = list(dict.fromkeys(part for some in parts.values() for part in some))
    rows = {part: row for row, part in enumerate(unique)}
    vectors = encoder.encode(unique) if unique else torch.zeros(0, encoder.dim)
    return {text: vectors[[rows[part] for part in some]] for text, some in parts.items()}


class TextMap(nn.Module):
    """Sentence vectors and features -> a common space, one for single features and one for a scene's mean.

    Args:
        text_dim: length of a sentence vector.
        dim: length of a feature.
        width: of the common spaces; hidden: of the layers before.
        seed: of the weights.
        dropout: of sentence vectors, of features, and of what is made of them, while training.
    """

    reference: Tensor

    def __init__(
        self, text_dim: int, dim: int, width: int = 96, hidden: int = 256, seed: int = 0, dropout: float = 0.2
    ) -> None:
        super().__init__()

        def two_layers(inputs: int) -> nn.Sequential:
            within = (nn.Linear(inputs, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width))
            return nn.Sequential(nn.Dropout(dropout), *within)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.text, self.text_whole = two_layers(text_dim), two_layers(text_dim)
            self.local, self.whole = two_layers(dim), two_layers(dim)
            self.weight = nn.Linear(text_dim, 2)  # how much a phrase counts, locally and as a whole
        nn.init.zeros_(self.weight.weight)
        nn.init.zeros_(self.weight.bias)
        self.log_scale, self.log_sharpness = nn.Parameter(torch.tensor(2.5)), nn.Parameter(torch.tensor(2.3))
        self.register_buffer("reference", torch.zeros(REFERENCE, dim))

    def forward(self, vectors: Tensor, owner: Tensor, scenes: Bank) -> Tensor:
        """Scores [Q, S] of each text for each scene: the sum of what its phrases score.

        Args:
            vectors: [P, T] of the phrases of all texts.
            owner: [P] number of the text each belongs to.
            scenes: to be scored.
        """
        score = self.phrase_scores(vectors, scenes)
        return score.new_zeros(int(owner.max()) + 1, score.shape[1]).index_add_(0, owner, score)

    def phrase_scores(self, vectors: Tensor, scenes: Bank) -> Tensor:
        """[P, S] the weighted sum of two cosines: the soft maximum over centres, log sum exp, and that with the mean.

        Args:
            vectors: [P, T] of phrases, or of single words.
            scenes: to be scored.
        """
        cosine = torch.einsum("pe,ske->psk", self._text(self.text, vectors), self._unit(self.local, scenes.centres))
        sharpness = self.log_sharpness.exp()
        prior = (scenes.shares.clamp_min(1e-9) ** 0.3).log().masked_fill(scenes.shares == 0, -1e9)
        prior = prior - prior.logsumexp(dim=1, keepdim=True)
        best = (cosine * sharpness + prior).logsumexp(dim=2) / sharpness
        mean = self._text(self.text_whole, vectors) @ self._unit(self.whole, scenes.means).T
        weight = softplus(self.weight(_spread(vectors)) + 0.5)
        return (weight[:, :1] * best + weight[:, 1:] * mean) * self.log_scale.exp()

    @torch.no_grad()
    def heat(self, vectors: Tensor, features: Tensor) -> Tensor:
        """[P, N] how much better each feature fits a phrase than those of training captures do, in deviations.

        Args:
            vectors: [P, T] of phrases.
            features: [N, D] of voxels, cells or key points.
        """
        text = self._text(self.text, vectors)
        usual = text @ self._unit(self.local, self.reference).T
        cosine = text @ self._unit(self.local, features.float()).T
        return (cosine - usual.mean(1, keepdim=True)) / usual.std(1, keepdim=True).clamp_min(1e-6)

    @staticmethod
    def _unit(layers: nn.Module, features: Tensor) -> Tensor:
        return normalize(layers(_spread(normalize(features, dim=-1))), dim=-1)

    @staticmethod
    def _text(layers: nn.Module, vectors: Tensor) -> Tensor:
        return normalize(layers(_spread(vectors)), dim=1)


def _spread(unit: Tensor) -> Tensor:
    """Unit vectors at unit variance, as layers like them."""
    return unit * unit.shape[-1] ** 0.5


def score_texts(text_map: TextMap, vectors: Sequence[Tensor], scenes: Bank) -> NDArray[np.float32]:
    """[Q, S] scores of texts for scenes; `vectors` are each text's phrases, as of `encode_phrases`."""
    owner = torch.repeat_interleave(torch.arange(len(vectors)), torch.tensor([len(some) for some in vectors]))
    with torch.no_grad():
        return text_map.eval()(torch.cat(list(vectors)), owner, scenes).numpy()


def train_text_map(
    banks: Sequence[Bank],
    captions: Sequence[Sequence[str]],
    vectors: Mapping[str, Tensor],
    params: LanguageParams,
    seed: int,
) -> TextMap:
    """Learns which caption belongs to which capture, which capture to which caption, and which words a capture has.

    A caption that another capture has word for word is no negative there.

    Args:
        banks: of the training captures, by voxels, by cells, ...: the map learns from each alike.
        captions: of each training capture, at least one.
        vectors: {text: its phrases} of `encode_phrases`, of the captions and of the words of `vocabulary`.
        params: how long and how fast.
        seed: of weights and draws.
    """
    count, dim = len(captions), banks[0].means.shape[1]
    text_map = TextMap(next(iter(vectors.values())).shape[1], dim, seed=seed, dropout=params.dropout).train()
    optimiser = torch.optim.AdamW(text_map.parameters(), params.lr, weight_decay=params.weight_decay)
    warm = max(1, params.steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1, (step + 1) / warm) * 0.5 * (1 + np.cos(np.pi * step / params.steps))
    )
    rng = np.random.default_rng(seed)
    own = [set(some) for some in captions]
    words = vocabulary(captions)
    has = torch.tensor([[row in owners for row in range(count)] for owners in words.values()], dtype=torch.bool)
    spoken = torch.cat([vectors[word] for word in words]) if words else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of the dropout
        for _ in range(params.steps):
            rows = rng.permutation(count)[: params.batch]
            texts = [str(rng.choice(list(captions[row]))) for row in rows]
            some = [each[rows] for each in banks]
            loss = _contrast(text_map, texts, [own[row] for row in rows], vectors, some)
            if spoken is not None:
                loss = loss + params.word_weight * _word_contrast(text_map, spoken, has[:, rows], some)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(text_map.parameters(), 5.0)
            optimiser.step()
            schedule.step()
    centres = torch.cat([some.centres[some.shares > 0] for some in banks])
    text_map.reference.copy_(centres[rng.choice(len(centres), REFERENCE)])
    return text_map.eval()


def _contrast(
    text_map: TextMap, texts: list[str], own: list[set[str]], vectors: Mapping[str, Tensor], banks: Sequence[Bank]
) -> Tensor:
    parts = [vectors[text] for text in texts]
    owner = torch.repeat_interleave(torch.arange(len(texts)), torch.tensor([len(part) for part in parts]))
    true = torch.arange(len(texts))
    also = torch.tensor([[text in some for some in own] for text in texts]) & ~torch.eye(len(texts), dtype=torch.bool)
    loss = torch.zeros(())
    for scenes in banks:
        score = text_map(torch.cat(parts), owner, scenes).masked_fill(also, -1e4)
        loss = loss + cross_entropy(score, true) + cross_entropy(score.T, true)
    return loss


def _word_contrast(text_map: TextMap, spoken: Tensor, has: Tensor, banks: Sequence[Bank]) -> Tensor:
    """Each scene that has a word against all scenes that have not.

    Args:
        text_map: that learns.
        spoken: [W, T] of the words.
        has: [W, S] which scene has which word.
        banks: of the scenes.
    """
    loss = torch.zeros(())
    for scenes in banks:
        score = text_map.phrase_scores(spoken, scenes)
        others = score.masked_fill(has, -1e4).logsumexp(dim=1, keepdim=True)
        loss = loss + (softplus(others - score) * has).sum() / has.sum().clamp_min(1)
    return loss


def save_text_map(path: Path, text_map: TextMap) -> None:
    """Writes one safetensors file."""
    tensors = {key: value.contiguous() for key, value in text_map.state_dict().items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary))


def load_text_map(path: Path) -> TextMap:
    """Reads what `save_text_map` wrote, in evaluation mode."""
    tensors = load_file(path)
    hidden, text_dim = tensors["text.1.weight"].shape
    text_map = TextMap(text_dim, tensors["local.1.weight"].shape[1], len(tensors["text.4.bias"]), hidden)
    text_map.load_state_dict(tensors)
    return text_map.eval()


def rank_scenes(
    text: str,
    encoder: SentenceEncoder,
    text_map: TextMap,
    names: Sequence[str],
    scenes: Bank | None,
    least: float = -np.inf,
) -> list[tuple[str, float]]:
    """Scenes that fit a text, best first: names and how far each stands out, in deviations over the scenes.

    Args:
        text: in any words; at most the first 256 tokens of a phrase are read.
        encoder: as in training.
        text_map: learned.
        names: [S] of the scenes.
        scenes: their features, of key points or voxels, condensed as in training; None without any.
        least: scenes below it are left out, so that nothing may be the answer; `margin_threshold` finds it.

    Raises:
        ValueError: the text is empty or blank.
    """
    vectors = encode_phrases(encoder, [text])[text]
    if scenes is None:
        return []
    score = stand_out(score_texts(text_map, [vectors], scenes))[0]
    return [(names[i], float(score[i])) for i in np.argsort(-score, kind="stable") if score[i] >= least]


def stand_out(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """[Q, S] scores of each text as deviations from its mean over scenes: comparable between texts."""
    spread = scores.std(axis=1, keepdims=True)
    return (scores - scores.mean(axis=1, keepdims=True)) / np.maximum(spread, 1e-9)


def margin_threshold(best: NDArray[np.floating], present: NDArray[np.bool_]) -> float:
    """The threshold on the best scene's standing that tells texts with an answer from those without most often.

    Args:
        best: [Q] of validation texts.
        present: [Q] whether a scene fits.
    """
    places = np.sort(best)
    candidates = np.concatenate([[places[0] - 1], (places[1:] + places[:-1]) / 2, [places[-1] + 1]])
    balanced = [((best >= t)[present].mean() + (best < t)[~present].mean()) / 2 for t in candidates]
    return float(candidates[int(np.argmax(balanced))])
