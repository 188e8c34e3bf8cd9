"""`headwater train`, and the choices that the help writes out."""

from pathlib import Path
from typing import get_args, get_type_hints

from headwater.commands.event_data import DataOptions, ProtocolOption
from headwater.commands.file_options import DecimalOption, PresetOption, TimeOption
from headwater.commands.main import app
from headwater.commands.models import ModelOption, SearchOption
from headwater.commands.train_shop import ShopOptions, next_steps
from headwater.files.presets import PresetName
from headwater.files.times import TimeUnit
from headwater.files.values import Decimal
from headwater_models.judging.protocols import Protocol
from headwater_models.networks import ARCHITECTURES, SCORERS
from headwater_models.training.search import Search
from tests.support.terminal import Terminal


def test_the_choices_are_those_of_the_code() -> None:
    """They are written out once more for the help, which imports nothing heavy."""
    assert get_args(ProtocolOption) == get_args(Protocol)
    assert get_args(SearchOption) == get_args(get_type_hints(Search)["by"])
    assert get_args(TimeOption) == get_args(TimeUnit)
    assert get_args(DecimalOption) == get_args(Decimal)
    assert get_args(PresetOption) == get_args(PresetName)
    assert set(get_args(ModelOption)) == {"shop", "starter", "groceries", "similar", *ARCHITECTURES, *SCORERS}


def test_several_files_of_a_shop_are_given_one_after_another_and_named_again_at_the_end() -> None:
    words = ["train", "shop", "--catalog", "items.csv", "--clicks", "mon.csv", "the tue.csv", "--out", "b"]
    _, bound, *_ = app.parse_args(words, exit_on_error=False)
    shop = bound.arguments["shop"]
    assert (shop.catalog, shop.clicks) == ([Path("items.csv")], [Path("mon.csv"), Path("the tue.csv")])
    assert "import clicks mon.csv 'the tue.csv'\n" in next_steps(shop, DataOptions(), Path("b"))


def test_the_commands_at_the_end_read_the_files_as_they_were_read() -> None:
    files = [
        "--catalog",
        "films.csv",
        "--catalog-map",
        "item_id=film",
        "--clicks",
        "seen.csv",
        "--map",
        "item_id=film",
    ]
    words = [*files, "--clicks-map", "user_id=who", "--separator", ";", "--like-from", "4", "--out", "b"]
    _, bound, *_ = app.parse_args(["train", "shop", *words], exit_on_error=False)
    told = next_steps(bound.arguments["shop"], bound.arguments["events"], Path("b"))
    assert "import catalog films.csv --map item_id=film --separator ';'\n" in told
    clicks = "seen.csv --map item_id=film --map user_id=who --separator ';' --like-from 4.0"
    assert f"import clicks {clicks}\n" in told
    for line in told.splitlines():
        if "import" in line:
            app.parse_args(line.replace("'", "").split()[1:], exit_on_error=False)


def test_without_a_catalog_the_clicks_name_the_items() -> None:
    shop = ShopOptions(clicks=[Path("seen.csv")], clicks_map=["item_id=film", "user_id=who"])
    told = next_steps(shop, DataOptions(), Path("b"))
    assert "import catalog seen.csv --map item_id=film\n" in told
    assert "import clicks seen.csv --map item_id=film --map user_id=who\n" in told


def test_a_wrong_option_is_one_sentence(terminal: Terminal) -> None:
    cases = [
        (["train", "nfm", "--out", "b", "--resume"], "--resume does not go with nfm: leave it out"),
        (["train", "lru", "--out", "b", "--study", "s"], "--study s: expected --search with it"),
    ]
    for sentence, (_, part) in zip(terminal.mistakes(*(words for words, _ in cases)), cases, strict=True):
        assert part in sentence
