"""A text encoder's tokenizer and graph: texts in, one vector each out, in batches that waste little on padding."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer

from headwater.encoder.bundle import TextInput
from headwater.encoder.readable import Reading

Floats = NDArray[np.float32]
# Tokens of a call, padding included. On a CPU its activations must stay inside the cache: MiniLM reads 405 short texts a
# second on one thread at 1,024 and 140 at 8,192; token tables do not mind. An accelerator wants large calls.
_TOKENS_PER_CALL, _TOKENS_PER_ACCELERATED_CALL = 1024, 8192


class TextGraph:
    """An item graph that reads tokens. Methods block for the length of the computation; any thread may call them."""

    def __init__(self, session: ort.InferenceSession, tokenizer: Tokenizer, text: TextInput) -> None:
        tokenizer.no_padding()
        tokenizer.enable_truncation(text.max_tokens)
        self.text = text
        self._session = session
        self._tokenizer = tokenizer
        self._inputs = {given.name for given in session.get_inputs()}
        (self._output,) = (given.name for given in session.get_outputs())
        accelerated = session.get_providers()[0] != "CPUExecutionProvider"
        self._budget = _TOKENS_PER_ACCELERATED_CALL if accelerated else _TOKENS_PER_CALL
        if text.alone:
            self._budget = 1

    @cached_property
    def _reading(self) -> Reading:
        """What the vocabulary can read. Counted at first use, since it takes a moment."""
        return Reading(self._tokenizer)

    def unknown_shares(self, tokens: Sequence[Sequence[int]], prefix: str = "") -> Floats:
        """(N,) the share of unknown tokens in each of N texts, as :meth:`tokens` gave them for this prefix."""
        return self._reading.unknown_shares(tokens, *self.tokens([""], prefix))

    def tokens(self, texts: Sequence[str], prefix: str = "") -> list[list[int]]:
        """Token ids of each text behind the prefix, cut to the longest text of the manifest, unpadded."""
        given = [prefix + text for text in texts] if prefix else list(texts)
        found = self._tokenizer.encode_batch_fast(given, add_special_tokens=self.text.special_tokens)
        return [one.ids for one in found]

    def vectors(
        self,
        tokens: Sequence[Sequence[int]],
        rows: NDArray[np.int64],
        dim: int,
        report: Callable[[int], None] | None = None,
    ) -> Floats:
        """Vectors (N, dim) of N texts.

        Args:
            tokens: of each text, as :meth:`tokens` gives them.
            rows: (N,) the row of each item's residual, 0 for none; graphs without residuals do not read them.
            dim: the width of the graph's output.
            report: called after each batch with the number of texts done.
        """
        lengths = np.fromiter((len(ids) for ids in tokens), dtype=np.int64, count=len(tokens))
        vectors = np.empty((len(tokens), dim), dtype=np.float32)
        done = 0
        for chunk in _even_chunks(lengths, self._budget):
            feed = self._padded(tokens, lengths, chunk)
            if "item_row" in self._inputs:
                feed["item_row"] = rows[chunk]
            (vectors[chunk],) = self._session.run([self._output], feed)
            if report is not None:
                done += len(chunk)
                report(done)
        return vectors

    def _padded(
        self, tokens: Sequence[Sequence[int]], lengths: NDArray[np.int64], chunk: NDArray[np.int64]
    ) -> dict[str, NDArray[np.int64]]:
        width = max(1, int(lengths[chunk].max()))
        mask = (np.arange(width) < lengths[chunk, None]).astype(np.int64)
        ids = np.full(mask.shape, self.text.pad_id, dtype=np.int64)
        ids[mask == 1] = np.fromiter(
            (i for row in chunk for i in tokens[row]), np.int64, count=int(mask.sum())
        )
        feed = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in self._inputs:
            feed["token_type_ids"] = np.zeros_like(ids)
        return {name: given for name, given in feed.items() if name in self._inputs}


def no_rows(count: int) -> NDArray[np.int64]:
    """The rows (count,) of items without residuals."""
    return np.zeros(count, dtype=np.int64)


def _even_chunks(lengths: NDArray[np.int64], budget: int) -> Iterator[NDArray[np.int64]]:
    """Indices of ``lengths`` (N,) in order of length, in chunks whose padded size stays within the budget of tokens."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * lengths[order[end]] <= budget:
            end += 1
        yield order[start:end]
        start = end
