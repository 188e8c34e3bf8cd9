"""`headwater train shop`: a shop's catalog and clicks, read as `headwater import` reads them, to a bundle of its own."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from cyclopts import Parameter

from headwater.commands.event_data import positive
from headwater.commands.file_options import EventOptions, FileOptions, PresetOption, option_words
from headwater.commands.terminal import FILES, FLAG, MANY, UsageError, command_line, say

if TYPE_CHECKING:
    from headwater.files.contents import Files
    from headwater.files.presets import Opened
    from headwater.files.table import BadRow
    from headwater_models.commands import Results

# Written out for the help, which must not import torch. A test holds it equal to the registry.
PoolingOption = Literal["mean", "cls", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean"]
EncoderOption = Literal["bert4rec", "gru4rec", "lru", "multi-interest", "narm", "sasrec"]


@Parameter(name="*")
@dataclass(frozen=True)
class ShopOptions:
    """The files of a shop, and what may be chosen.

    Parameters
    ----------
    catalog
        For shop: the file of items, as `headwater import catalog` takes it; several files, a folder or a pattern too. Without one
        the items are those of the clicks, known by their ids.
    catalog_map
        FIELD=COLUMN or FIELD=COLUMN:TYPE of the catalog; repeatable.
    clicks
        For shop: the file of events, as `headwater import clicks` takes it, or several, such as one of each day; times may
        be missing. The other options of files are for both.
    clicks_map
        FIELD=COLUMN of the clicks; repeatable. --map says the same.
    catalog_preset
        The known format of the catalog, where it is not that of --preset.
    list_separator
        What stands between tags of the catalog.
    text_encoder
        For shop: the encoder of item texts: static, or a sentence encoder as `headwater export` takes it.
    pooling
        How the vectors of the tokens become one; default: as the files of the sentence encoder say. An ONNX file needs all of
        --pooling, --prefix, --query-prefix and --max-tokens.
    prefix
        Read before the text of each item.
    query_prefix
        Read before each free-text query.
    max_tokens
        Longer texts are cut.
    tokenizer
        The tokenizer.json of an ONNX file; default: beside it.
    int8
        Use the sentence encoder in 8 bits.
    user_encoder
        For shop: the user encoder; default: chosen by the statistics of the data.
    interests
        For shop: the most interests of a user; default: 3, or 1 where several cost more than 3 % of what the validation finds. With
        1 a recurrent encoder (lru, gru4rec) keeps a state, and a click costs one step.
    """

    catalog: Annotated[list[Path] | None, FILES] = None
    catalog_map: Annotated[list[str], MANY] = field(default_factory=list)
    clicks: Annotated[list[Path] | None, FILES] = None
    clicks_map: Annotated[list[str], MANY] = field(default_factory=list)
    catalog_preset: PresetOption | None = None
    list_separator: str = "auto"
    text_encoder: str = "static"
    pooling: PoolingOption | None = None
    prefix: str | None = None
    query_prefix: str | None = None
    max_tokens: int | None = None
    tokenizer: Path | None = None
    int8: Annotated[bool, FLAG] = False
    user_encoder: EncoderOption | None = None
    interests: int | None = None

    @property
    def given(self) -> dict[str, object]:
        """The options that say something, by name."""
        usual = ShopOptions()
        pairs = {name: (getattr(self, name), getattr(usual, name)) for name in self.__dataclass_fields__}
        return {
            f"--{name.replace('_', '-')}": value for name, (value, known) in pairs.items() if value != known
        }


SHOP = ShopOptions()
# Each is a search of the index for each request.
MOST_INTERESTS: Final = 8


def train_shop(shop: ShopOptions, events: EventOptions, out: Path, **training: Any) -> "Results":
    """Read both files, say what is left out and what is chosen, and train.

    Raises UsageError, or what `headwater_models.commands.train_shop` raises.
    """
    if not shop.clicks:
        raise UsageError(
            f"--clicks is missing: expected `headwater train shop --catalog items.csv --clicks clicks.csv --out {out}`"
        )
    of_catalog = {"--catalog-map": shop.catalog_map, "--catalog-preset": shop.catalog_preset}
    if not shop.catalog and (wrong := next((name for name, value in of_catalog.items() if value), None)):
        raise UsageError(f"{wrong} says how the catalog is written: expected --catalog FILE with it")
    from headwater_models.commands import require_torch
    from headwater_models.commands import train_shop as train
    from headwater_models.data.datasets import read_events

    if shop.interests is not None and not 1 <= shop.interests <= MOST_INTERESTS:
        raise UsageError(f"--interests is {shop.interests}: expected 1 to {MOST_INTERESTS}")
    require_torch()
    from headwater_models.bundles.sentence_config import Configured

    reading = Configured(
        shop.pooling,
        shop.prefix,
        shop.query_prefix,
        positive("--max-tokens", shop.max_tokens),
        shop.tokenizer,
        shop.int8,
    )
    items = None
    if shop.catalog:
        from headwater.files.items import items_of

        form = _catalog_form(shop, events)
        opened = form.opened(shop.catalog, "catalog")
        items = items_of(opened.table, opened.chosen, form.item_form(shop.list_separator))
        _tell(shop.catalog, opened, items.bad, items.notes)
    opened = _clicks_form(shop, events).opened(shop.clicks, "training")
    clicks = read_events(opened, events.event_form())
    _tell(shop.clicks, opened, clicks.bad, clicks.notes)
    return train(
        items,
        clicks,
        [files for files in (shop.catalog, shop.clicks) if files],
        out,
        text_encoder=shop.text_encoder,
        reading=reading,
        user_encoder=shop.user_encoder,
        interests=shop.interests,
        say=say,
        command=command_line(),
        **training,
    )


def _catalog_form(shop: ShopOptions, events: EventOptions) -> EventOptions:
    """How the catalog is written."""
    from headwater.files.presets import PRESETS

    preset = shop.catalog_preset
    if preset is None and events.preset is not None and PRESETS[events.preset].catalog is not None:
        preset = events.preset
    return replace(events, preset=preset, map_=shop.catalog_map)


def _clicks_form(shop: ShopOptions, events: EventOptions) -> EventOptions:
    """How the clicks are written."""
    return replace(events, map_=[*events.map_, *shop.clicks_map])


def next_steps(shop: ShopOptions, events: EventOptions, out: Path) -> str:
    """What to do with the bundle, in commands that read the files as they were read here."""
    clicks = _clicks_form(shop, events)
    if shop.catalog:
        items, form = shop.catalog, option_words(_catalog_form(shop, events), FileOptions)
        if shop.list_separator != "auto":
            form += ["--list-separator", shop.list_separator]
    else:  # the items are those of the clicks
        ids = [each for each in clicks.map_ if each.startswith("item_id=")]
        items, form = shop.clicks or [], option_words(replace(clicks, map_=ids), FileOptions)
    return (
        f"{out} is ready. Serve it: HEADWATER_BUNDLE={shlex.quote(str(out))} headwater up\n"
        f"then, in a second terminal:\n  headwater import catalog {_words(items, form)}\n"
        f"  headwater import clicks {_words(shop.clicks or [], option_words(clicks, EventOptions))}\n"
        f"  headwater ask USER\nwhat is in it: headwater bundle show {shlex.quote(str(out))}"
    )


def _words(files: "Sequence[Path]", options: Sequence[str]) -> str:
    return shlex.join([*map(str, files), *options])


def _tell(files: "Files", opened: "Opened", bad: "Sequence[BadRow]", notes: Sequence[str]) -> None:
    from headwater.files.contents import named

    file = named(files)
    for note in notes:
        say(f"{file}: {note}")
    for row in bad[:5]:
        say(f"{file}: {opened.table.place(row.line)} is left out: {row.reason}")
    if len(bad) > 5:
        say(f"{file}: and {len(bad) - 5:,} more of {opened.table.rows:,} rows are left out")
