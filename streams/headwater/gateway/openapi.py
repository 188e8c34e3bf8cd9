"""The gateway's OpenAPI document, made from the messages. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from headwater import __version__
from headwater.messages import Click, Item, Offer, Position, Request, Response

Document = dict[str, Any]

# Fields that the gateway fills in by itself.
_GIVEN_BY_US: Final[Mapping[str, Sequence[str]]] = {
    "Click": ("event_id", "at_ms"),
    "Request": ("request_id",),
}
_REFUSALS: Final[Mapping[str, str]] = {
    "400": "A field is not allowed: the sentence names it, what was sent, and what is expected.",
    "401": "The header `Authorization: Bearer KEY` is missing, or the key is wrong.",
    "408": "The body did not come within 10 s.",
    "413": "The body is larger than 1 MB.",
    "415": "The body is not `application/json`.",
    "429": "Too often, or too many at once. `Retry-After` says when to come back; nothing was published.",
    "503": "Kafka does not answer, or the worker is overloaded. `Retry-After` says when to come back.",
    "504": "No answer in time, or the demanded click was not applied by `deadline_ms`.",
}
_ERROR: Final[Document] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "event_id": {
                    "type": "string",
                    "description": "of the click that may not be stored: send it again under this id",
                },
            },
        },
        "answer": {"$ref": "#/components/schemas/Response"},
    },
}
_PUBLISHED: Final[Document] = {
    "type": "object",
    "required": ["partition", "offset", "token"],
    "properties": {
        "partition": {"type": "integer"},
        "offset": {"type": "integer"},
        "token": {
            "type": "string",
            "description": "the position, for `Headwater-After`",
            "examples": ["3-1042"],
        },
        "event_id": {"type": "string"},
    },
}
# What the page begins with, to be tried.
_EXAMPLES: Final[Mapping[str, Document]] = {
    "Click": {"user_id": "ann", "item_id": "c1", "action": "click"},
    "Item": {"item_id": "c1", "title": "Ground filter coffee", "category": "coffee", "price": 5.9},
    "Offer": {"item_id": "c1", "price": 4.5},
    "Request": {"user_id": "ann", "limit": 5},
}
_TOKEN_HEADER: Final[Document] = {
    "description": "Where the message is stored. Sent as `Headwater-After`, the answer reflects it.",
    "schema": {"type": "string", "examples": ["3-1042"]},
}
_AFTER: Final[Document] = {
    "name": "Headwater-After",
    "in": "header",
    "description": "The answer has to reflect the click at this position. Without it: every click of the user that was "
    "acknowledged before.",
    "schema": {"type": "string", "examples": ["3-1042"]},
}


def document() -> Document:
    """OpenAPI 3.1."""
    (_, components) = msgspec.json.schema_components(
        (Click, Item, Offer, Request, Response, Position), ref_template="#/components/schemas/{name}"
    )
    schemas: Document = dict(components)
    for name, fields in _GIVEN_BY_US.items():
        schema = schemas[name]
        schema["required"] = [field for field in schema["required"] if field not in fields]
    del schemas["Request"]["properties"]["request_id"]
    schemas["Request"]["properties"]["reads"] = {
        "enum": ["all", "any"],
        "default": "all",
        "description": "all: every acknowledged click of the user; any: what has been applied by then",
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Headwater",
            "version": __version__,
            "description": "Recall that reflects a click in milliseconds, for programs that do not speak Kafka.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "components": {
            "schemas": {**schemas, "Error": _ERROR, "Published": _PUBLISHED},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
        "paths": {
            "/clicks": {"post": _publishing("Publish one event of a user.", "Click", "publishClick")},
            "/items": {"post": _publishing("Publish a catalog entry, new or changed.", "Item", "putItem")},
            "/items/{item_id}": {
                "delete": {
                    "operationId": "deleteItem",
                    "summary": "Take an item out of the catalog.",
                    "parameters": [_path("item_id")],
                    "responses": {"200": _stored(), **_refusals("400", "401", "429", "503")},
                }
            },
            "/offers": {
                "post": _publishing(
                    "Publish a new price, availability or attributes of an item.", "Offer", "offer"
                )
            },
            "/offers/{item_id}": {
                "delete": {
                    "operationId": "withdrawOffers",
                    "summary": "Take back what was offered of an item so far.",
                    "parameters": [_path("item_id")],
                    "responses": {"200": _stored(), **_refusals("400", "401", "429", "503")},
                }
            },
            "/recall": {
                "post": {
                    "operationId": "recall",
                    "summary": "Ask for items for a user.",
                    "parameters": [_AFTER],
                    "requestBody": _body("Request"),
                    "responses": {"200": _answer(), **_refusals(*_REFUSALS)},
                }
            },
            "/items/{item_id}/similar": {
                "get": {
                    "operationId": "similarItems",
                    "summary": "The items nearest to one.",
                    "parameters": [
                        _path("item_id"),
                        _query("user_id", {"type": "string"}, "leave out what this user has seen"),
                        _query(
                            "limit",
                            {"type": "integer", "minimum": 1, "maximum": 1000, "default": 20},
                            "how many",
                        ),
                    ],
                    "responses": {"200": _answer(), **_refusals("400", "401", "429", "503", "504")},
                }
            },
        },
    }


def _publishing(summary: str, schema: str, operation: str) -> Document:
    return {
        "operationId": operation,
        "summary": summary,
        "description": "Answers once the broker has stored it.",
        "requestBody": _body(schema),
        "responses": {"201": _stored(), **_refusals("400", "401", "408", "413", "415", "429", "503")},
    }


def _stored() -> Document:
    return {
        "description": "Stored.",
        "headers": {"Headwater-Position": _TOKEN_HEADER},
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Published"}}},
    }


def _answer() -> Document:
    return {
        "description": "The answer, `ok`, or `degraded` with the rung that says why.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Response"}}},
    }


def _body(schema: str) -> Document:
    return {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": f"#/components/schemas/{schema}"},
                "example": _EXAMPLES[schema],
            }
        },
    }


def _refusals(*statuses: str) -> Document:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": _REFUSALS[status], "content": error} for status in statuses}


def _path(name: str) -> Document:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _query(name: str, schema: Document, description: str) -> Document:
    return {"name": name, "in": "query", "schema": schema, "description": description}
