"""A sentence encoder distilled into a table of token vectors.

After Model2Vec and its Tokenlearn (github.com/MinishLab): encode each token alone, reduce by PCA, then fit the table
so that the weighted mean of a text's tokens is the teacher's vector of the text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from headwater_models.arrays import F32


@dataclass(frozen=True)
class TokenTable:
    """vectors[t] is weight times direction of token t. A text is the mean of its tokens' vectors."""

    vectors: F32  # (vocabulary, dim)
    teacher_cosine: float  # to the teacher's reduced vectors, on held-out texts


class SentenceTeacher:
    """A sentence encoder from a local folder: mean pooling, vectors of length one."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoModel, AutoTokenizer  # takes seconds to import

        self.tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
        self.model = AutoModel.from_pretrained(str(path), local_files_only=True).eval()

    def encode(self, texts: Sequence[str], report: Callable[[int, int], None]) -> F32:
        """Texts -> f32 (texts, teacher dim). `report(done, total)` is called after each batch."""
        return self._encode_ids(
            self.tokenizer(list(texts), truncation=True, max_length=64)["input_ids"], report
        )

    def encode_tokens(self, tokens: Sequence[int], report: Callable[[int, int], None]) -> F32:
        """Tokens of the vocabulary, each as a text of its own: f32 (tokens, teacher dim)."""
        first, last = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        return self._encode_ids([[first, token, last] for token in tokens], report, batch=256)

    def _encode_ids(self, ids: list[list[int]], report: Callable[[int, int], None], batch: int = 64) -> F32:
        # Batches of similar length need little padding.
        order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
        out = np.empty((len(ids), self.model.config.hidden_size), dtype=np.float32)
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            width = max(len(ids[n]) for n in rows)
            tokens = torch.zeros(len(rows), width, dtype=torch.long)
            mask = torch.zeros(len(rows), width)
            for place, n in enumerate(rows):
                tokens[place, : len(ids[n])] = torch.tensor(ids[n])
                mask[place, : len(ids[n])] = 1
            with torch.inference_mode():
                hidden = self.model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
            pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            out[rows] = F.normalize(pooled, dim=-1).numpy()
            report(min(start + batch, len(order)), len(order))
        return out


def generic_texts(teacher: SentenceTeacher, count: int, seed: int) -> list[str]:
    """Texts of two to four whole words from the teacher's vocabulary.

    Other catalogs are not about groceries: these texts keep the tower's geometry general.
    """
    words = [
        word for word in teacher.tokenizer.get_vocab() if word.isalpha() and word.isascii() and len(word) > 3
    ]
    words.sort()
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(words, rng.integers(2, 5))) for _ in range(count)]


def distil(
    tokens_by_teacher: F32,
    texts_by_teacher: F32,
    ids: list[list[int]],
    dim: int,
    epochs: int,
    seed: int,
) -> TokenTable:
    """Fit a token table (vocabulary, dim) to texts that the teacher has encoded.

    The mean of a text's token vectors should point in the direction of the teacher's vector, reduced to `dim` by PCA.
    Every twentieth text is held out, to measure `teacher_cosine`.

    Args:
        tokens_by_teacher: (vocabulary, teacher dim)
        texts_by_teacher: (texts, teacher dim)
        ids: token ids of each text
    """
    torch.manual_seed(seed)
    mean = texts_by_teacher.mean(0)
    _, _, axes = np.linalg.svd(texts_by_teacher - mean, full_matrices=False)
    reduce = axes[:dim].T
    wanted = F.normalize(torch.from_numpy((texts_by_teacher - mean) @ reduce), dim=-1)
    start = torch.from_numpy(((tokens_by_teacher - tokens_by_teacher.mean(0)) @ reduce).astype(np.float32))
    # Zipf weights (Model2Vec): the vocabulary is roughly in order of frequency, and frequent tokens say little.
    rank = torch.arange(len(start), dtype=torch.float32)
    weight = torch.log1p(rank / 100.0) / np.log1p(len(start) / 100.0)
    table = nn.EmbeddingBag.from_pretrained(start * weight[:, None], freeze=False, mode="mean", sparse=True)
    held_out = torch.arange(len(ids)) % 20 == 0
    optimizer = torch.optim.SparseAdam(list(table.parameters()), lr=3e-3)
    generator = torch.Generator().manual_seed(seed)
    fitted = torch.nonzero(~held_out)[:, 0]
    for _ in range(epochs):
        for rows in fitted[torch.randperm(len(fitted), generator=generator)].split(512):
            loss = 1 - F.cosine_similarity(table(*_bag(ids, rows)), wanted[rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        rows = torch.nonzero(held_out)[:, 0]
        cosine = float(F.cosine_similarity(table(*_bag(ids, rows)), wanted[rows]).mean())
        vectors = table.weight.numpy().copy()
    return TokenTable(vectors, cosine)


def _bag(ids: list[list[int]], rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = [ids[n] for n in rows.tolist()]
    starts = np.cumsum([0, *(len(row) for row in chosen)])[:-1]
    return torch.tensor([token for row in chosen for token in row]), torch.tensor(starts)
