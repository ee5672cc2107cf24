"""The OpenAPI document of what is served: the routes, what a call may hold, what comes back, and how things fail.

A pure function. The fields of a call come from the table that calls are held to, so the two cannot differ; which
error has which status is decided in `edge/rendering.py`, and a test holds the list here to it.
"""

from collections.abc import Collection, Mapping
from typing import Any

from gateway.wire.openai import CHAT_PATH, DROPPED, FORWARDED, REQUIRED
from gateway.wire.rules import or_null

PATH = "/openapi.json"
JSON = "application/json"

# What a status other than 200 means. Those of the first table can come from any route.
ANYWHERE = {
    400: "The call is not valid; `param` names the field, where one is wrong.",
    405: "The method is not the route's; `allow` has those that are.",
    408: "The call did not arrive in time.",
    413: "The body is too large.",
    414: "The target of the call is too long.",
    417: "Something is expected that is not done here.",
    431: "The head of the call is too large.",
    500: "The gateway's own fault, or its engine's configuration.",
    503: "Nobody can serve this now: engines are down or busy, or the gateway is shutting down.",
}
UNAUTHENTICATED = {401: "There is no key, or none that is known."}
UNKNOWN_MODEL = {404: "There is no such model, or the key may not call it."}
REFUSED = {
    415: "The body is not sent as `application/json` in UTF-8.",
    429: "A limit of the key or its tenant is reached; `retry-after` says when to come back.",
}
ERRORS = ANYWHERE | UNAUTHENTICATED | UNKNOWN_MODEL | REFUSED

_text: Mapping[str, Any] = {"type": "string"}
_whole: Mapping[str, Any] = {"type": "integer", "minimum": 0}


def document(
    version: str, max_choices: int, *, also_allowed: Collection[str] = (), with_metrics: bool = False
) -> dict[str, Any]:
    """The document, for the limit of `n` and the fields that the settings allow beyond the table's.

    `with_metrics` where the metrics are on the same listener.
    """
    paths = {
        CHAT_PATH: {"post": _chat()},
        "/v1/models": {
            "get": _operation("listModels", "The models that the key may call", _json("Models"), UNAUTHENTICATED)
        },
        "/v1/models/{name}": {
            "get": _operation("getModel", "One of them", _json("Model"), UNAUTHENTICATED | UNKNOWN_MODEL),
            "parameters": [{"name": "name", "in": "path", "required": True, "schema": _text}],
        },
        "/livez": {"get": _operation("isAlive", "Whether the process answers", _json("Liveness"))},
        "/readyz": {"get": _readiness()},
        PATH: {"get": _operation("describe", "This document", {JSON: {"schema": {"type": "object"}}})},
    }
    if with_metrics:
        content = {"text/plain": {"schema": _text}}
        paths["/metrics"] = {"get": _operation("getMetrics", "Metrics, for Prometheus", content)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Pagegate",
            "version": version,
            "description": "An LLM serving gateway with OpenAI's surface.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(max_choices, also_allowed),
            "responses": {str(status): _error(status, text) for status, text in ERRORS.items()},
            "headers": {"x-request-id": {"description": "The gateway's identifier of the call.", "schema": _text}},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(
    name: str, summary: str, content: Mapping[str, Any], errors: Mapping[int, str] | None = None
) -> dict[str, Any]:
    """A route that needs a key, if it can refuse one."""
    failures = {**ANYWHERE, **(errors or {})}
    return {
        "operationId": name,
        "summary": summary,
        "security": [{"key": []}] if 401 in failures else [],
        "responses": {
            "200": {"description": summary, "headers": _headers(), "content": dict(content)},
            **{str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(failures)},
        },
    }


def _chat() -> dict[str, Any]:
    # As is usual before OpenAPI 3.2, the schema of a stream is that of one event.
    content = {**_json("ChatReply"), "text/event-stream": {"schema": _ref("ChatEvent")}}
    return {
        **_operation("chat", "A model's next message", content, UNAUTHENTICATED | UNKNOWN_MODEL | REFUSED),
        "requestBody": {"required": True, "content": _json("ChatCall")},
    }


def _readiness() -> dict[str, Any]:
    operation = _operation("isReady", "Whether calls can be served", _json("Readiness"))
    either = {"anyOf": [_ref("Readiness"), _ref("Error")]}
    unready = {
        "description": "No call can be served now.",
        "headers": _headers(),
        "content": {JSON: {"schema": either}},
    }
    operation["responses"]["503"] = unready
    return operation


def _error(status: int, description: str) -> dict[str, Any]:
    return {"description": description, "headers": _headers(), "content": _json("Error")}


def _headers() -> dict[str, Any]:
    return {"x-request-id": {"$ref": "#/components/headers/x-request-id"}}


def _json(name: str) -> dict[str, Any]:
    return {JSON: {"schema": _ref(name)}}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _schemas(max_choices: int, also_allowed: Collection[str]) -> dict[str, Any]:
    return {
        "ChatCall": _call(max_choices, also_allowed),
        "ChatReply": _reply("chat.completion", {"message": _ref("Message")}),
        "ChatChunk": _reply("chat.completion.chunk", {"delta": _ref("Message")}),
        "ChatEvent": _event(),
        "Message": _object(
            {"role": _text, "content": or_null(_text), "tool_calls": or_null(_list({"type": "object"}))}
        ),
        "Usage": _object(
            {"prompt_tokens": _whole, "completion_tokens": _whole, "total_tokens": _whole},
            "prompt_tokens",
            "total_tokens",
        ),
        "Models": _object({"object": {"const": "list"}, "data": _list(_ref("Model"))}, "object", "data"),
        "Model": _object(
            {"id": _text, "object": {"const": "model"}, "created": _whole, "owned_by": _text},
            *("id", "object", "created", "owned_by"),
        ),
        "Liveness": _object({"status": {"const": "alive"}}, "status"),
        "Readiness": _object(
            {
                "status": {"enum": ["ready", "not ready"]},
                "draining": {"type": "boolean"},
                "models": {
                    "type": "object",
                    "additionalProperties": _object({"up": _whole, "replicas": _whole}, "up", "replicas"),
                },
            },
            *("status", "draining", "models"),
        ),
        "Error": _object(
            {
                "error": {
                    **_object(
                        {"message": _text, "type": _text, "param": or_null(_text), "code": or_null(_text)},
                        *("message", "type", "param", "code"),
                    ),
                    "additionalProperties": False,
                }
            },
            "error",
        ),
    }


def _call(max_choices: int, also_allowed: Collection[str]) -> dict[str, Any]:
    """What a chat call may hold: null is as good as absent, but in the fields that must be there."""
    fields = {name: rule.schema for name, rule in {**FORWARDED, **DROPPED}.items()}
    fields["n"] = {**fields["n"], "maximum": max_choices}
    properties: dict[str, Any] = {
        name: schema if name in REQUIRED else or_null(schema) for name, schema in fields.items()
    }
    properties |= {name: {} for name in sorted(also_allowed) if name not in fields}
    return {
        "type": "object",
        "properties": properties,
        "required": list(REQUIRED),
        "additionalProperties": False,
    }


def _reply(kind: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """What an engine answers. It is passed on as it came, so more may stand in it."""
    choice = _object(
        {"index": _whole, **said, "logprobs": or_null({"type": "object"}), "finish_reason": or_null(_text)},
        *("index", *said),
    )
    fields = {
        "id": _text,
        "object": {"const": kind},
        "created": _whole,
        "model": _text,
        "choices": _list(choice),
        "usage": or_null(_ref("Usage")),
    }
    return _object(fields, "id", "object", "created", "model", "choices")


def _event() -> dict[str, Any]:
    """One event of a stream."""
    said = [
        {"type": "string", "contentMediaType": JSON, "contentSchema": _ref(name)} for name in ("ChatChunk", "Error")
    ]
    return {
        **_object({"data": {"anyOf": [{"const": "[DONE]"}, *said]}}, "data"),
        "description": "One event of a stream. The last is `[DONE]`; one that breaks off ends in an error instead.",
    }


def _object(properties: Mapping[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "required": list(required)}


def _list(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}
