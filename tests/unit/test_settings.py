"""Settings: where they come from, what a wrong one says, and that secrets stay secret."""

import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from headwater.profiles.counters import DEFAULT_COUNTERS
from headwater.settings import LOCAL_BROKER, Settings, SettingsError
from tests.support.checkout import ROOT


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in os.environ:
        if variable.startswith("HEADWATER_"):
            monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)


def test_defaults_suit_a_laptop() -> None:
    settings = Settings.load()
    assert settings.kafka_options() == {
        "bootstrap_servers": LOCAL_BROKER,
        "security_protocol": "PLAINTEXT",
    }
    assert (settings.partitions, settings.catalog_partitions, settings.replication_factor) == (4, 4, 1)
    assert settings.web_host == "127.0.0.1"
    assert settings.counters_per_user == DEFAULT_COUNTERS
    assert settings.model_fields_set == set()


def test_given_wins_over_environment_and_environment_over_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "headwater.toml").write_text("partitions = 2\ncatalog_partitions = 3\nmax_parked = 5\n")
    monkeypatch.setenv("HEADWATER_CATALOG_PARTITIONS", "6")
    monkeypatch.setenv("HEADWATER_MAX_PARKED", "7")
    settings = Settings.load(max_parked=9)
    assert (settings.partitions, settings.catalog_partitions, settings.max_parked) == (2, 6, 9)


def test_the_file_may_be_named_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text('topic_prefix = "shop"\nreply_topics = ["a", "b"]\n')
    monkeypatch.setenv("HEADWATER_CONFIG", "other.toml")
    settings = Settings.load()
    assert settings.topic_prefix == "shop."
    assert settings.reply_topics == ("a", "b")


def test_a_named_file_that_does_not_exist_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_CONFIG", "/nowhere/x.toml")
    with pytest.raises(SettingsError, match=r"HEADWATER_CONFIG is '/nowhere/x\.toml': expected"):
        Settings.load()


def test_a_broken_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "headwater.toml").write_text("partitions 4")
    with pytest.raises(SettingsError, match=r"headwater\.toml cannot be read: expected a TOML file"):
        Settings.load()


def test_an_unknown_setting_in_the_file_is_an_error_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "headwater.toml").write_text("partition = 4")
    with pytest.raises(SettingsError, match=r"^partition is no setting: expected partitions$"):
        Settings.load()


def test_a_misspelt_variable_is_an_error_with_the_right_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_PARTITION", "8")
    with pytest.raises(
        SettingsError, match="HEADWATER_PARTITION is no setting: expected HEADWATER_PARTITIONS"
    ):
        Settings.load()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("PARTITIONS", "many", "a valid integer"),
        ("PARTITIONS", "0", "greater than or equal to 1"),
        ("DEVICE", "tpu", "'auto', 'cpu' or 'cuda'"),
        ("TOPIC_PREFIX", "a b", "letters, digits"),
        ("KAFKA_BOOTSTRAP_SERVERS", "localhost", "host:port"),
        ("KAFKA_BOOTSTRAP_SERVERS", "a:9092,b:99999", "host:port"),
        ("QDRANT_URL", "qdrant:6334", "a URL such as"),
        ("BUNDLE", "/nowhere", "the path of a bundle's folder"),
        ("KAFKA_SSL_CA_FILE", "/nowhere.pem", "the path of an existing file"),
        ("USER_TTL_DAYS", "-1", "greater than 0"),
        ("WEB_PORT", "70000", "less than or equal to 65535"),
    ],
)
def test_a_wrong_value_is_one_sentence_with_setting_value_and_expectation(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(f"HEADWATER_{name}", value)
    with pytest.raises(SettingsError) as caught:
        Settings.load()
    message = str(caught.value)
    assert message.startswith(f"HEADWATER_{name} is '{value}': expected ")
    assert expected in message
    assert "\n" not in message


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_QDRANT_URL", "")
    monkeypatch.setenv("HEADWATER_PARTITIONS", "")
    settings = Settings.load()
    assert settings.qdrant_url is None
    assert settings.partitions == 4


def test_secrets_are_in_no_repr_and_no_error() -> None:
    settings = Settings.load(
        kafka_security_protocol="SASL_PLAINTEXT",
        kafka_sasl_username="me",
        kafka_sasl_password="hunter2",
        qdrant_api_key="hunter3",
    )
    assert "hunter" not in repr(settings)
    assert "hunter" not in str(settings)
    assert settings.kafka_options()["sasl_plain_password"] == "hunter2"
    with pytest.raises(SettingsError) as caught:
        Settings.load(kafka_sasl_password=["hunter4"])
    assert "hunter" not in str(caught.value)
    assert "HEADWATER_KAFKA_SASL_PASSWORD is not shown" in str(caught.value)


@pytest.mark.parametrize("key", ["hunter3\n", "hunt\u00e9r3"])
def test_a_key_that_cannot_be_sent_is_refused_without_being_shown(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("HEADWATER_QDRANT_API_KEY", key)
    with pytest.raises(SettingsError) as error:
        Settings.load()
    assert "HEADWATER_QDRANT_API_KEY is not shown: expected printable ASCII" in str(error.value)
    assert "hunt" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"kafka_security_protocol": "SASL_SSL"}, "HEADWATER_KAFKA_SASL_USERNAME"),
        ({"kafka_sasl_username": "me", "kafka_sasl_password": "x"}, "expected SASL_SSL or SASL_PLAINTEXT"),
        ({"kafka_ssl_cert_file": __file__}, "expected both or neither"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given: dict[str, str], expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        Settings.load(**given)


def test_tls_gives_every_client_a_context_that_verifies_the_broker() -> None:
    context = Settings.load(kafka_security_protocol="SSL").kafka_options()["ssl_context"]
    assert context.verify_mode == ssl.CERT_REQUIRED


def test_a_certificate_that_is_none_is_refused_by_the_name_of_its_setting() -> None:
    with pytest.raises(
        SettingsError, match=r"HEADWATER_KAFKA_SSL_CA_FILE is '.*': expected readable PEM files"
    ):
        Settings.load(kafka_security_protocol="SSL", kafka_ssl_ca_file=__file__).kafka_options()


def test_settings_cannot_be_changed_once_built() -> None:
    settings = Settings.load()
    with pytest.raises(ValueError, match="frozen"):
        settings.partitions = 8


@pytest.mark.parametrize(("prefix", "stored"), [("shop", "shop."), ("shop.", "shop."), ("a-b_", "a-b_")])
def test_groups_are_named_after_the_prefix(prefix: str, stored: str) -> None:
    settings = Settings.load(topic_prefix=prefix)
    assert settings.topic_prefix == stored
    assert settings.interests_group == f"{prefix.rstrip('._')}-interests"
    assert settings.catalog_group == f"{prefix.rstrip('._')}-catalog"


def test_reply_topics_are_a_comma_separated_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_REPLY_TOPICS", "answers.v1, other.v1,")
    assert Settings.load().reply_topics == ("answers.v1", "other.v1")


def test_states_on_disk_want_a_system_that_can_reserve_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_STATE_ON_DISK", "true")
    assert Settings.load().state_on_disk
    monkeypatch.delattr(os, "posix_fallocate")
    with pytest.raises(SettingsError, match="HEADWATER_STATE_ON_DISK is 'true': expected false on a system"):
        Settings.load()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("QDRANT_URL", "http://me:hunter5@qdrant:6333"),
        ("QDRANT_URL", "me:hunter5@qdrant:6333"),
        ("QDRANT_URL", "https://qdrant:6333/?api-key=hunter5"),
        ("QDRANT_URL", "https://qdrant:6333/#hunter5"),
        ("QDRANT_URL", "http://me:hunt@er5:hunter5@qdrant:6333"),
        ("KAFKA_BOOTSTRAP_SERVERS", "k1:9092,me:hunter5@k2:9092"),
    ],
)
def test_a_password_in_an_address_is_refused_without_being_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"HEADWATER_{name}", value)
    with pytest.raises(SettingsError) as caught:
        Settings.load()
    message = str(caught.value)
    assert message.startswith(f"HEADWATER_{name} is '")
    assert "..." in message
    assert "hunt" not in message
    assert "me:" not in message


def test_settings_load_without_a_kafka_client() -> None:
    """Every command loads them first, so that a wrong one is told at once."""
    code = """
import sys
from headwater.run_file import running_system
print(sorted({"aiokafka", "numpy", "faust", "onnxruntime", "polars"} & set(sys.modules)))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "streams")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "token", ["short", "x" * 15, "with a space in the middle", "line\nbreak-in-the-middle", "é" * 20]
)
def test_a_token_that_can_be_guessed_or_not_be_sent_is_refused_without_being_shown(token: str) -> None:
    with pytest.raises(
        SettingsError, match="HEADWATER_ADMIN_TOKEN is not shown: expected at least 16"
    ) as caught:
        Settings.load(admin_token=token)
    assert token not in str(caught.value)
    with pytest.raises(
        SettingsError, match=r"HEADWATER_GATEWAY_KEYS is not shown: expected at least 16 .* in each key"
    ) as caught:
        Settings.load(gateway_keys=f"correct-horse-battery,{token}")
    assert token not in str(caught.value)
    assert "correct" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "keys"), [("", []), ("a" * 16, ["a" * 16]), (f" {'a' * 16} , {'b' * 20}", ["a" * 16, "b" * 20])]
)
def test_keys_are_separated_by_commas(text: str, keys: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_GATEWAY_KEYS", text)
    found = Settings.load().gateway_keys
    assert [key.get_secret_value() for key in found] == keys
    assert "aaa" not in repr(found)


@pytest.mark.parametrize("text", [f"{'a' * 16},", f",{'a' * 16}", f"{'a' * 16},,{'b' * 16}", ","])
def test_an_empty_key_is_a_mistake(text: str) -> None:
    with pytest.raises(SettingsError, match="expected at least 16"):
        Settings.load(gateway_keys=text)


def test_a_token_is_made_up_only_where_none_is_set() -> None:
    made = Settings().with_admin_token().admin_token
    other = Settings().with_admin_token().admin_token
    assert made is not None
    assert made != other
    assert len(made.get_secret_value()) >= 32
    given = Settings.load(admin_token="x" * 16)
    assert given.with_admin_token() == given
    assert "x" * 16 not in repr(given)


def test_the_live_page_is_opened_to_this_machine_unless_somebody_has_said_otherwise() -> None:
    assert Settings.load().live_open is False
    assert Settings.load().with_open_page().live_open is True
    assert Settings.load(live_open=False).with_open_page().live_open is False
    assert Settings.load(admin_token="correct-horse-battery").with_open_page().live_open is False
