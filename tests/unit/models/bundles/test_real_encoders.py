"""Published encoders in two languages, where a local Maven repository has them: each reads its own language."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.extras import needs

needs("onnx", extra="train")

from headwater_models.bundles.language_model import Configured, open_language_model  # noqa: E402 - needs onnx

VERSION = "0.36.2"
ENGLISH = [
    ("Ground coffee, 12 oz", "Espresso beans, dark roast"),
    ("Running shoes for men", "Trail sneakers"),
    ("Wireless noise cancelling headphones", "Bluetooth earbuds"),
    ("Winter down jacket", "Warm wool coat"),
    ("Baby diapers, size 3", "Baby wipes"),
]
CHINESE = [
    ("研磨咖啡，350克", "浓缩咖啡豆，深度烘焙"),
    ("男士跑鞋", "越野运动鞋"),
    ("无线降噪耳机", "蓝牙耳塞"),
    ("冬季羽绒服", "保暖羊毛大衣"),
    ("婴儿纸尿裤，3号", "婴儿湿巾"),
]


def jar(encoder: str) -> str:
    """The jar of an encoder in the local Maven repository; skips where it is not."""
    artifact = f"langchain4j-embeddings-{encoder}"
    place = Path.home() / ".m2/repository/dev/langchain4j" / artifact / VERSION / f"{artifact}-{VERSION}.jar"
    if not place.is_file():
        pytest.skip(
            f"{artifact} is not in the local Maven repository: mvn dependency:get -Dartifact=dev.langchain4j:{artifact}:{VERSION}"
        )
    return str(place)


def found_first(encoder: str, options: Configured, pairs: list[tuple[str, str]]) -> float:
    """Share of texts whose nearest other text is the one of the same theme."""
    texts = [text for pair in pairs for text in pair]
    vectors = open_language_model(jar(encoder), options).vectors(texts, lambda *_: None)
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -1)
    return float((likeness.argmax(axis=1) == (np.arange(len(texts)) ^ 1)).mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "options", "pairs"),
    [
        ("bge-small-en-v15-q", Configured("cls", "", "", 512), ENGLISH),
        ("e5-small-v2-q", Configured("mean", "passage: ", "query: ", 512), ENGLISH),
        ("bge-small-zh-v15-q", Configured("cls", "", "", 512), CHINESE),
    ],
    ids=["bge English", "e5 English", "bge Chinese"],
)
def test_what_belongs_together_lies_together(
    encoder: str, options: Configured, pairs: list[tuple[str, str]]
) -> None:
    assert found_first(encoder, options, pairs) >= 0.9
