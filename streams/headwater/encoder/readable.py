"""Which texts a text encoder can read, told by its vocabulary, and the vectors of those that it cannot.

A tokenizer never refuses a text. What it does not know becomes an unknown token, or single letters of a script that the
encoder never learned, and all such texts get nearly one vector. Items with such texts would be neighbours of each other,
coffee of shoes. So their vectors come from their spelling: texts that share words are near each other, others are not.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray
from tokenizers import Tokenizer

Floats = NDArray[np.float32]

# Above this share of unknown tokens a text counts as unreadable. Below, the words that are known tell what it is about.
MOST_UNKNOWN: Final = 0.5
# A vocabulary reads an alphabet if it has words or syllables of it, and ideographs if it has a good part of them. BERT's
# English one has 26,534 tokens with two Latin letters, 8 with two Cyrillic ones, 488 ideographs; the Chinese one 7,322.
# Number and share of the vocabulary: the smaller one counts.
_LEAST_SYLLABLES: Final = (100, 0.01)
_LEAST_SIGNS: Final = (1_000, 0.1)


class Reading:
    """What a tokenizer's vocabulary can read. Methods may be called from any thread."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
        unknown = getattr(tokenizer.model, "unk_token", None)
        syllables: Counter[str] = Counter()
        signs: Counter[str] = Counter()
        scripts: dict[int, dict[str, int]] = {}
        for token, number in vocabulary.items():
            if token in special:
                continue
            scripts[number] = found = _letters(token)
            for name, letters in found.items():
                (signs if letters == 1 else syllables)[name] += 1
        size = max(vocabulary.values(), default=-1) + 1
        # Of each token: whether it is unknown, and whether it is a word, a part of one, or unknown.
        self._unknown = np.zeros(size, dtype=np.bool_)
        self._tells = np.zeros(size, dtype=np.bool_)
        few_syllables, few_signs = (
            min(number, share * len(scripts)) for number, share in (_LEAST_SYLLABLES, _LEAST_SIGNS)
        )
        self._unread = {
            name
            for name in syllables.keys() | signs.keys()
            if syllables[name] < few_syllables and signs[name] < few_signs
        }
        for number, found in scripts.items():
            self._tells[number] = bool(found)
            self._unknown[number] = bool(found) and found.keys() <= self._unread
        number = vocabulary.get(unknown) if isinstance(unknown, str) else _unigram_unknown(tokenizer)
        if number is not None:
            self._tells[number] = self._unknown[number] = True

    def unknown_shares(self, tokens: Sequence[Sequence[int]], prefix: Sequence[int] = ()) -> Floats:
        """(N,) the share of unknown tokens in each of N tokenised texts; numbers and punctuation do not count.

        ``prefix`` are the tokens that stand before each text. They say nothing of it, so they do not count either.
        """
        lengths = np.fromiter((len(ids) for ids in tokens), dtype=np.int64, count=len(tokens))
        flat = np.fromiter(
            (token for ids in tokens for token in ids), dtype=np.int64, count=int(lengths.sum())
        )
        ends = np.cumsum(lengths)
        unknown = _sums(self._unknown[flat], ends)
        telling = np.maximum(_sums(self._tells[flat], ends) - self._tells[list(prefix)].sum(), unknown)
        share: Floats = (unknown / np.maximum(telling, 1)).astype(np.float32)
        return share


def spelled(text: str, dim: int) -> Floats:
    """(dim,) a vector of length one from the pairs and triples of signs in a text's words.

    Each has a direction of its own, 1 or -1 in each dimension by the bits of its hash. Two texts have the cosine of what they share, give or take
    1 / sqrt(dim); with the vectors of texts that were read they have nothing in common.
    """
    pieces = [piece.encode("utf-8", "surrogatepass") for piece in _pieces(text)]
    words = -(-dim // 128)
    digests = b"".join(xxhash.xxh3_128_digest(piece, seed) for piece in pieces for seed in range(words))
    bits = np.unpackbits(np.frombuffer(digests, dtype=np.uint8)).reshape(len(pieces), 128 * words)[:, :dim]
    found = 2.0 * bits.sum(axis=0) - len(pieces)
    return np.asarray(found / max(float(np.linalg.norm(found)), 1e-9), dtype=np.float32)


@cache
def script(sign: str) -> str:
    """The script of a letter: the first word of its name in Unicode, such as LATIN, THAI or CJK."""
    return unicodedata.name(sign, "").split(" ")[0]


def _letters(token: str) -> dict[str, int]:
    """The number of a token's letters of each script."""
    if token.isascii():
        count = sum(map(str.isalpha, token))
        return {"LATIN": count} if count else {}
    return Counter(script(sign) for sign in token if sign.isalpha())


def _pieces(text: str) -> list[str]:
    words = [word.strip(".,;:!?()[]\"'") for word in text.casefold().split()]
    return [
        word[start : start + size]
        for word in words
        for size in (2, 3)
        for start in range(max(1, len(word) - size + 1))
        if word
    ]


def _sums(values: NDArray[np.bool_], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) the number of true values in each of N runs that end at ``ends`` (N,)."""
    return np.diff(np.concatenate([[0], np.cumsum(values)])[ends], prepend=0)


def _unigram_unknown(tokenizer: Tokenizer) -> int | None:
    """The unknown token of a unigram model, which has no name of its own for it."""
    for name in ("<unk>", "[UNK]"):
        number: int | None = tokenizer.token_to_id(name)
        if number is not None:
            return number
    return None
