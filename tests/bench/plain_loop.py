"""Baseline: texts through the same ONNX session in a plain loop. Prints items a second.

python -m tests.bench.plain_loop BUNDLE TEXTS.json
"""

import json
import sys
import time
from pathlib import Path

from headwater.encoder import runtime as encoder

# As many texts at once as a catalog worker encodes.
SLICE = 512


def main(bundle: str, texts_file: str) -> None:
    texts, item_ids = json.loads(Path(texts_file).read_text())
    loaded = encoder.load(Path(bundle), threads=1, device="cpu")
    warm = max(len(texts) // 20, 1)
    loaded.encode_items(texts[:warm], item_ids[:warm])
    started = time.perf_counter()
    for start in range(warm, len(texts), SLICE):
        loaded.encode_items(texts[start : start + SLICE], item_ids[start : start + SLICE])
    print((len(texts) - warm) / (time.perf_counter() - started))


if __name__ == "__main__":
    main(*sys.argv[1:])
