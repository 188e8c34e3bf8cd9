"""Options of what a bundle is judged on."""

from pathlib import Path

import pytest

pytest.importorskip("polars")

from headwater.commands.case_data import CaseOptions
from headwater.commands.event_data import DataOptions
from headwater.commands.terminal import UsageError


def test_a_file_of_events_with_a_catalog_is_the_data_that_a_shop_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("items.csv").write_text("sku,title\na,Ground coffee\nb,Green tea\nbare,\n")
    rows = ("u,a,1700000000000", "u,b,1700000001000", "u,gone,1700000002000")
    Path("clicks.csv").write_text("\n".join(["user_id,item_id,at_ms", *rows]))
    events = DataOptions(data="clicks.csv")
    options = CaseOptions(catalog=Path("items.csv"), catalog_map=["item_id=sku"])
    options.check(events)
    data = options.shop(events)
    assert (data.item_ids, data.texts) == (["a", "b", "bare"], ["Ground coffee", "Green tea"])
    assert len(data.log.items) == 2
    assert "1 items that are not in the catalog, such as gone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "events"),
    [
        (CaseOptions(catalog=Path("items.csv")), DataOptions(data="ml-100k")),
        (CaseOptions(catalog_map=["item_id=sku"]), DataOptions(data="clicks.csv")),
        (CaseOptions(clicks=Path("clicks.csv")), DataOptions(data="clicks.csv")),
    ],
)
def test_options_of_cases_without_any_are_refused(options: CaseOptions, events: DataOptions) -> None:
    with pytest.raises(UsageError, match="goes with a file of cases"):
        options.check(events)
