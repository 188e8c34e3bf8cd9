"""The AsyncAPI document: valid under the specification's own schema, and true of the topics and messages."""

import gzip
import json
from dataclasses import fields
from typing import Any

import jsonschema
import msgspec
import pytest

from headwater.docs.asyncapi import document
from headwater.kafka.topics import Topics, specs
from headwater.messages import (
    MESSAGES,
    Trend,
    decode_click,
    decode_item,
    decode_offer,
    decode_request,
    decode_response,
)
from headwater.settings import Settings
from tests.support.checkout import ROOT
from tests.unit.test_messages import SENT

# The specification's JSON Schema as its authors publish it (npm @asyncapi/specs 6.11.1), Apache-2.0.
SPECIFICATION = ROOT / "tests" / "support" / "asyncapi" / "3.0.0.json.gz"
SECURED = {
    "kafka_security_protocol": "SASL_SSL",
    "kafka_sasl_mechanism": "SCRAM-SHA-512",
    "kafka_sasl_username": "ann",
    "kafka_sasl_password": "not-in-the-document",
    "kafka_bootstrap_servers": "kafka-1:9093,kafka-2:9093",
    "topic_prefix": "shop.",
    "partitions": 12,
    "replication_factor": 3,
}


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    return document(Settings.load())


def resolved(told: dict[str, Any], reference: str) -> Any:
    found: Any = told
    for step in reference.removeprefix("#/").split("/"):
        found = found[step]
    return found


def references(node: object) -> list[str]:
    if isinstance(node, dict):
        return [
            *([node["$ref"]] if "$ref" in node else []),
            *(each for value in node.values() for each in references(value)),
        ]
    return [each for value in node for each in references(value)] if isinstance(node, list) else []


@pytest.mark.parametrize("settings", [{}, SECURED], ids=["plain", "secured"])
def test_the_document_is_valid_under_the_schema_of_asyncapi_3(settings: dict[str, Any]) -> None:
    specification = json.loads(gzip.decompress(SPECIFICATION.read_bytes()))
    validator = jsonschema.Draft7Validator(specification)
    made = json.loads(json.dumps(document(Settings.load(**settings))))
    assert [error.message[:200] for error in validator.iter_errors(made)] == []
    made["channels"]["clicks"]["adress"] = "a misspelt field"
    assert not validator.is_valid(made)


def test_every_reference_leads_somewhere(told: dict[str, Any]) -> None:
    found = references(told)
    assert len(found) > 40
    for each in found:
        resolved(told, each)


def test_every_topic_is_a_channel_as_it_is_made(told: dict[str, Any]) -> None:
    settings = Settings.load()
    made = {spec.name: spec for spec in specs(settings)}
    assert set(told["channels"]) == {field.name for field in fields(Topics)}
    for channel in told["channels"].values():
        topic, spec = channel["bindings"]["kafka"], made[channel["address"]]
        assert topic["partitions"] == spec.partitions
        written = {
            name: ",".join(value) if isinstance(value, list) else str(value)
            for name, value in topic["topicConfiguration"].items()
        }
        assert written == spec.config


def test_every_message_that_is_json_is_described_by_the_type_that_decodes_it(told: dict[str, Any]) -> None:
    described = told["components"]["messages"]
    assert set(MESSAGES) == {name for name, each in described.items() if "$ref" in each["payload"]}
    carried = {
        reference.rpartition("/")[2]
        for channel in told["channels"].values()
        for reference in references(channel["messages"])
    }
    assert carried == set(described)


@pytest.mark.parametrize("message", SENT, ids=lambda message: type(message).__name__)
def test_what_is_sent_fits_its_schema_of_draft_7(told: dict[str, Any], message: msgspec.Struct) -> None:
    schema = {"$ref": f"#/components/schemas/{type(message).__name__}", "components": told["components"]}
    body = json.loads(msgspec.json.encode(message))
    jsonschema.validate(body, schema, jsonschema.Draft7Validator)
    if isinstance(message, Trend):
        body["counts"] = [["tea", 1.5, "more"]]
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(body, schema, jsonschema.Draft7Validator)


def test_the_examples_are_messages_that_a_worker_takes(told: dict[str, Any]) -> None:
    decoders: dict[str, Any] = {
        "Click": lambda raw: decode_click(None, raw, 2_000_000_000_000),
        "Item": lambda raw: decode_item(None, raw),
        "Offer": lambda raw: decode_offer(None, raw, 2_000_000_000_000),
        "Request": lambda raw: decode_request(None, raw, 2_000_000_000_000),
        "Response": decode_response,
    }
    shown = {
        name: each["examples"][0]["payload"]
        for name, each in told["components"]["messages"].items()
        if "examples" in each
    }
    assert set(shown) == set(decoders)
    for name, example in shown.items():
        decoders[name](msgspec.json.encode(example))


def test_no_secret_is_in_the_document() -> None:
    assert "not-in-the-document" not in json.dumps(document(Settings.load(**SECURED)))
