import pytest
from prometheus_client import Counter, Gauge, Info
from prometheus_client.parser import text_string_to_metric_families

from headwater.metrics import DEFINITIONS, Definition, Histogram, Metrics, reference


def _samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of the exposition by (name, labels), read with Prometheus' own parser."""
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda definition: definition.name)
def test_a_metric_says_what_it_means_and_what_to_do(definition: Definition) -> None:
    about = definition.about
    assert about.meaning.endswith(".")
    assert about.remedy.endswith(".")
    assert about.meaning != about.remedy
    assert "|" not in about.meaning + about.remedy, "would break the table of the documentation"


def test_names_are_unique_and_follow_prometheus() -> None:
    names = [definition.exposed_name for definition in DEFINITIONS]
    assert len(set(names)) == len(names)
    for definition in DEFINITIONS:
        assert definition.name.endswith("_total") == (definition.kind is Counter), definition.name
        if definition.name.endswith("_seconds") and definition.kind is Histogram:
            assert definition.about.buckets[0] < 1, "durations are in seconds"
        assert list(definition.about.buckets) == sorted(set(definition.about.buckets))


def test_every_definition_becomes_an_attribute_of_its_kind() -> None:
    metrics = Metrics()
    for definition in DEFINITIONS:
        assert type(getattr(metrics, definition.name)) is definition.kind


def test_metrics_without_labels_are_exposed_before_anything_happened() -> None:
    samples = _samples(Metrics())
    assert samples["headwater_too_late_total", ()] == 0
    assert samples["headwater_click_to_applied_seconds_count", ()] == 0
    assert samples["headwater_pending_clicks", ()] == 0


def test_every_metric_appears_in_the_exposition_once_used() -> None:
    metrics = Metrics()
    for definition in DEFINITIONS:
        metric = getattr(metrics, definition.name)
        child = metric.labels(*("x" for _ in definition.about.labels)) if definition.about.labels else metric
        match child:
            case Counter():
                child.inc(3)
            case Gauge():
                child.set(3)
            case Histogram():
                child.observe(3)
            case Info():
                child.info({"version": "0.1.0"})
    samples = _samples(metrics)
    for definition in DEFINITIONS:
        labels = tuple(sorted((label, "x") for label in definition.about.labels))
        if definition.kind is Info:
            assert samples[f"{definition.exposed_name}_info", (("version", "0.1.0"),)] == 1
        elif definition.kind is Histogram:
            assert samples[f"{definition.exposed_name}_sum", labels] == 3
        else:
            assert samples[definition.exposed_name, labels] == 3


def test_the_memory_of_the_process_is_exposed() -> None:
    assert _samples(Metrics())["process_resident_memory_bytes", ()] > 1_000_000


def test_series_of_creation_times_are_left_out() -> None:
    metrics = Metrics()
    metrics.strays_total.labels("clicks.v1").inc()
    assert b"_created" not in metrics.exposition()
    assert b"headwater_strays_total" in metrics.exposition()


def test_two_workers_in_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.duplicates_total.inc(5)
    assert _samples(one)["headwater_duplicates_total", ()] == 5
    assert _samples(other)["headwater_duplicates_total", ()] == 0


def test_a_batch_of_observations_counts_like_one_by_one() -> None:
    # On, between, below and beyond the buckets' bounds; the bound itself belongs to its bucket.
    seconds = [0.0, 0.001, 0.0011, 0.05, 0.3, 60.0, 61.0, 0.3]
    together, single = Metrics(), Metrics()
    together.click_to_applied_seconds.observe_all(seconds)
    together.batch_size.labels("clicks").observe_all([1, 3, 10_000])
    for value in seconds:
        single.click_to_applied_seconds.observe(value)
    for value in (1, 3, 10_000):
        single.batch_size.labels("clicks").observe(value)

    def of_ours(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        return {key: value for key, value in _samples(metrics).items() if key[0].startswith("headwater_")}

    assert of_ours(together) == pytest.approx(of_ours(single))
    assert of_ours(together)["headwater_click_to_applied_seconds_count", ()] == len(seconds)


def test_an_empty_batch_changes_nothing() -> None:
    metrics = Metrics()
    metrics.click_to_applied_seconds.observe_all([])
    assert _samples(metrics)["headwater_click_to_applied_seconds_count", ()] == 0


def test_the_reference_is_a_table_with_a_row_for_each_metric() -> None:
    header, rule, *rows = reference().splitlines()
    assert header.count("|") == rule.count("|") == 5
    assert len(rows) == len(DEFINITIONS)
    for definition, row in zip(DEFINITIONS, rows, strict=True):
        assert row.startswith(f"| `{definition.exposed_name}")
        assert row.count("|") == 5
    assert "`headwater_lag{topic, partition}`" in reference()
