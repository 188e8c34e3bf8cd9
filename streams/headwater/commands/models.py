"""`headwater train`, `tune` and `export`: from data to bundles."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from cyclopts import Parameter

from headwater.commands.event_data import EVENTS, DataOptions, positive, print_tables
from headwater.commands.terminal import FLAG, MANY, UsageError, command_line, default_bundle
from headwater.commands.train_shop import SHOP, PoolingOption, ShopOptions, next_steps, train_shop

# Written out for the help, which must not import torch. Tests hold them equal to the registries.
ModelOption = Literal[
    "shop",
    "starter",
    "groceries",
    "bert4rec",
    "gru4rec",
    "lru",
    "multi-interest",
    "narm",
    "sasrec",
    "deepfm",
    "dlrm",
    "nfm",
    "similar",
]


SearchOption = Literal["grid", "random", "tpe"]

# What `train` trains; all others are user encoders over item ids.
_KINDS: Final = {
    "shop": "shop",
    "starter": "starter",
    "groceries": "groceries",
    "similar": "table",
    **dict.fromkeys(("deepfm", "dlrm", "nfm"), "scorer"),
}
# The options of `train` that only some kinds of model take.
_GOES_WITH: Final = {
    "shop": {"--epochs", "--set", "--resume"},
    "starter": set(),
    "groceries": {"--steps"},
    "table": {"--bundle"},
    "scorer": {"--bundle", "--epochs", "--set", "--search", "--study"},
    "item ids": {"--epochs", "--set", "--search", "--study", "--teacher", "--nested", "--resume"},
}


def train(
    model: ModelOption,
    *,
    out: Path,
    shop: ShopOptions = SHOP,
    events: DataOptions = EVENTS,
    bundle: Path | None = None,
    seed: int = 0,
    epochs: int | None = None,
    steps: int | None = None,
    set_: Annotated[list[str], Parameter(name="--set"), MANY] = [],  # noqa: B006 - cyclopts never changes it
    search: SearchOption | None = None,
    trials: int = 20,
    study: Path | None = None,
    teacher: Path | None = None,
    nested: Annotated[list[int], MANY] = [],  # noqa: B006 - cyclopts never changes it
    resume: Annotated[bool, FLAG] = False,
    threads: int = 1,
) -> int:
    """Train a model, export it as a bundle, and print its figures.

    Needs the extra train; starter and groceries also need the extra export.

    Example: headwater train shop --catalog items.csv --clicks clicks.csv --out my-bundle

    Parameters
    ----------
    model
        shop: a bundle from your catalog and clicks, chosen by their statistics. starter: the shipped bundle for any catalog,
        without data. groceries: the demo's bundle, from Complete Journey. deepfm, dlrm, nfm: scores for the candidates of a
        bundle. similar: a table of items taken together, added to a bundle. The others: user encoders over item ids.
    out
        The folder of the new bundle.
    bundle
        For deepfm, dlrm, nfm and similar: the bundle to extend. Default: the one in force (`headwater settings`).
    seed
        Seed of all random numbers.
    epochs
        Epochs at most; default: the recipe's. For all but starter, groceries and similar.
    steps
        Training steps of groceries; default: those of the shipped bundle.
    set_
        field=value of the recipe, such as fit.loss=gbce or encoder.dim=32; repeatable. Recipes are in
        headwater_models/training/recipes.py. For all but starter, groceries and similar.
    search
        Search the recipe's space by validation, and train with the best values. For all but starter, groceries and similar.
    trials
        Variants in all, including those that the study already has.
    study
        The file that keeps the search and resumes it; default: `out` with .study appended.
    teacher
        A bundle whose answers the model also learns. For the models of item ids.
    nested
        Train the first N dimensions to work alone, for `bundle lighten --dim`; repeatable. For the models of item ids.
    resume
        Continue from the checkpoint that a killed training left beside `out`.
    threads
        Threads of torch. More than one pays only on idle cores, since the threads mostly wait for each other.
    """
    from headwater_models.commands import (
        train_groceries,
        train_scorer,
        train_sequence,
        train_similar,
        train_starter,
    )

    kind = _KINDS.get(model, "item ids")
    given = {
        "--steps": steps,
        "--bundle": bundle,
        "--epochs": epochs,
        "--set": set_,
        "--search": search,
        "--study": study,
        "--teacher": teacher,
        "--nested": nested,
        "--resume": resume,
    }
    _check_options(model, kind, given, shop, events)
    if kind == "shop":
        figures = train_shop(
            shop,
            events,
            out,
            at=events.moment(),
            seed=seed,
            epochs=positive("--epochs", epochs),
            settings=set_,
            resume=resume,
            threads=threads,
        )
        print_tables(figures)
        print(next_steps(shop, events, out))
        return 0
    if kind == "starter":
        print(train_starter(out, threads=threads, command=command_line()).id)
        return 0
    if kind == "groceries":
        print(train_groceries(out, steps=steps, seed=seed, threads=threads, command=command_line()).id)
        return 0
    chosen, moment = events.protocol_or("global-time"), events.moment()
    training: dict[str, Any] = {"at": moment, "threads": threads, "command": command_line()}
    if kind == "table":
        base = bundle or default_bundle()
        return print_tables(train_similar(base, events.load(), chosen, out, **training))
    training |= {"seed": seed, "epochs": positive("--epochs", epochs), "settings": set_}
    if search is not None:
        positive("--trials", trials)
        from headwater_models.training.search import Search

        training["search"] = Search(search, trials, study or out.with_name(f"{out.name}.study"))
    if kind == "scorer":
        base = bundle or default_bundle()
        return print_tables(train_scorer(model, base, events.load(), chosen, out, **training))
    training |= {"teacher": teacher, "nested": nested, "resume": resume}
    return print_tables(train_sequence(model, events.load(), chosen, out, **training))


def _check_options(
    model: str, kind: str, given: Mapping[str, object], shop: ShopOptions, events: DataOptions
) -> None:
    """Raises UsageError for options that the model does not take."""
    for option, value in given.items():
        if value and option not in _GOES_WITH[kind]:
            raise UsageError(f"{option} does not go with {model}: leave it out")
    for option in shop.given if kind != "shop" else ():
        raise UsageError(f"{option} goes with `headwater train shop` only: leave it out")
    if given["--study"] is not None and given["--search"] is None:
        raise UsageError(f"--study {given['--study']}: expected --search with it, which says how to search")
    if kind == "shop" and (
        events.data != EVENTS.data or events.path is not None or events.protocol is not None
    ):
        raise UsageError("train shop takes --catalog and --clicks: leave --data, --path and --protocol out")


def tune(
    *,
    model: str,
    out: Path,
    events: DataOptions = EVENTS,
    steps: int | None = None,
    rank: int | None = None,
    pooling: PoolingOption | None = None,
    loss: Literal["contrastive", "elsa"] = "contrastive",
    seed: int = 0,
    threads: int = 1,
) -> int:
    """Tune a Hugging Face sentence encoder to items taken together, for `headwater export`.

    Needs the extra export.

    Example: headwater tune --model all-MiniLM-L6-v2 --data events.csv --out tuned

    Parameters
    ----------
    model
        A folder, or a name that transformers can load.
    out
        The folder of the tuned model, for `headwater export --model`.
    steps
        Training steps; default: 200.
    rank
        Rank of the LoRA updates; default: 8; 0: all weights are trained.
    pooling
        How the vectors of a text's tokens become one; default: as the model's own files say.
    loss
        Pairs of items taken one after the other, or whole histories at once, which takes four times as long.
    seed
        Seed of all random numbers.
    threads
        Threads of torch.
    """
    from headwater_models.commands import tune_lm

    tune_lm(
        model,
        events.load(),
        events.protocol_or("global-time"),
        out,
        at=events.moment(),
        steps=positive("--steps", steps),
        rank=rank,
        pooling=pooling,
        loss=loss,
        seed=seed,
        threads=threads,
    )
    print(out)
    return 0


def export(
    *,
    model: str,
    out: Path,
    pooling: PoolingOption | None = None,
    prefix: str | None = None,
    query_prefix: str | None = None,
    max_tokens: int | None = None,
    tokenizer: Path | None = None,
    int8: Annotated[bool, FLAG] = False,
) -> int:
    """Export a sentence encoder as the item tower of a new bundle.

    Texts are pooled, prefixed and cut as the model's own files say. Options overrule them. An ONNX file has none, so they
    must be named. Needs the extra train, and the extra export for a model without an ONNX file.

    Example: headwater export --model tuned --out my-bundle --int8

    Example: headwater export --model e5.onnx --out my-bundle --pooling mean --prefix "passage: " --query-prefix "query: "
    --max-tokens 512

    Parameters
    ----------
    model
        A folder, an installed package, a name on the Hugging Face hub, an ONNX file, or a jar or zip that holds one;
        `static`: the token vectors of the shipped starter; `static:MODEL`: those of a model.
    out
        The folder of the new bundle.
    pooling
        How the vectors of a text's tokens become one.
    prefix
        Text before each item's text.
    query_prefix
        Text before each free-text query.
    max_tokens
        Tokens of a text at most; longer texts are cut.
    tokenizer
        The tokenizer.json of an ONNX file; default: beside it.
    int8
        Quantize weights and activations to 8 bits, per channel.
    """
    from headwater_models.commands import export_lm

    bundle = export_lm(
        model,
        out,
        pooling=pooling,
        prefix=prefix,
        query_prefix=query_prefix,
        max_tokens=positive("--max-tokens", max_tokens),
        tokenizer=tokenizer,
        int8=int8,
        command=command_line(),
    )
    print(bundle.id)
    return 0
