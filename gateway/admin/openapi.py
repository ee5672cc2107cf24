"""The OpenAPI document of the admin API, made from the table of operations and from the models of what they take."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic.json_schema import models_json_schema

from gateway.admin.bodies import Body, Nothing
from gateway.admin.operations import OPERATIONS, PREFIX, Operation
from gateway.admin.roles import LEAST

JSON = "application/json"
TEMPLATE = "#/components/schemas/{model}"

# What a status other than success means.
ERRORS: Mapping[str, str] = {
    "400": "What was sent is not valid; the message names every problem.",
    "401": "There is no credential, or none that is known as an administrator's.",
    "403": "The credential's role does not permit this; the message says which one would.",
    "404": "There is no such thing.",
    "409": "What there is already is in the way, or it is managed by the settings file.",
    "413": "The body is too large.",
    "415": "The body is not JSON in UTF-8.",
    "429": "Too many wrong credentials came from the address; `retry-after` says when to come back.",
    "503": "The database cannot be reached; nothing was changed.",
}

_text: Mapping[str, Any] = {"type": "string"}
_whole: Mapping[str, Any] = {"type": "integer", "minimum": 0}
_cost: Mapping[str, Any] = {"type": "number", "minimum": 0}
_texts: Mapping[str, Any] = {"type": "array", "items": _text}
_time: Mapping[str, Any] = {"type": ["string", "null"], "format": "date-time"}
_maybe: Mapping[str, Any] = {"type": ["string", "null"]}
_any: Mapping[str, Any] = {"type": "object"}


def document(version: str) -> dict[str, Any]:
    """The document."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(PREFIX + operation.path, {})[operation.method.lower()] = _operation(operation)
    taken: dict[type[Body], Literal["validation"]] = {
        operation.takes: "validation" for operation in OPERATIONS if operation.in_body
    }
    _, schemas = models_json_schema(list(taken.items()), ref_template=TEMPLATE)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Pagegate administration", "version": version},
        "paths": paths,
        "security": [{"administrator": []}],
        "components": {
            "schemas": {**schemas.get("$defs", {}), **_shown()},
            "responses": {status: {"description": text, "content": _json("Error")} for status, text in ERRORS.items()},
            "securitySchemes": {"administrator": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    needs = LEAST[operation.act].value if operation.act is not None else "viewer"
    content = {"text/csv": {}, "application/jsonl": {}} if operation.gives == "File" else _json(operation.gives)
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "description": f"Needs the role `{needs}`.",
        "responses": {
            str(operation.status): {"description": operation.summary, "content": content},
            **{status: {"$ref": f"#/components/responses/{status}"} for status in ERRORS},
        },
    }
    parameters = [] if operation.in_body else _parameters(operation.takes)
    if "{name}" in operation.path:
        parameters.append({"name": "name", "in": "path", "required": True, "schema": _text})
    if parameters:
        described["parameters"] = parameters
    if operation.in_body:
        described["requestBody"] = {
            "required": operation.takes is not Nothing,
            "content": _json(_name(operation.takes)),
        }
    return described


def _parameters(query: type[Body]) -> list[dict[str, Any]]:
    schema = query.model_json_schema(ref_template=TEMPLATE)
    return [
        {"name": name, "in": "query", "description": field.get("description", ""), "schema": field}
        for name, field in schema.get("properties", {}).items()
    ]


def _name(body: type[Body]) -> str:
    return body.__name__


def _json(name: str) -> dict[str, Any]:
    return {JSON: {"schema": {"$ref": TEMPLATE.format(model=name)}}}


def _object(**properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "required": list(properties)}


def _also(name: str, **properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"allOf": [{"$ref": TEMPLATE.format(model=name)}, _object(**properties)]}


def _page(name: str) -> dict[str, Any]:
    return _object(data={"type": "array", "items": {"$ref": TEMPLATE.format(model=name)}}, next=_maybe)


def _shown() -> dict[str, Any]:
    """What comes back; a test holds the answers to it."""
    used = {
        "calls": _whole,
        "prompt_tokens": _whole,
        "completion_tokens": _whole,
        "cached_tokens": _whole,
        "cost": _cost,
    }
    return {
        "Anything": _any,
        "Whoami": _object(name=_text, role=_text, may=_texts),
        "Key": _object(
            id=_maybe,
            name=_text,
            kind={"enum": ["caller", "administrator"]},
            role=_maybe,
            managed_by={"enum": ["file", "database"]},
            state={"enum": ["active", "expired", "revoked", "shadowed"]},
            tenant=_maybe,
            models=_texts,
            limits=_any,
            priority=_maybe,
            metadata=_any,
            hint=_maybe,
            created_at=_time,
            expires_at=_time,
            revoked_at=_time,
            previous_until=_time,
        ),
        "MadeKey": _also("Key", key={"type": "string", "description": "The key itself, shown this once."}),
        "Keys": _page("Key"),
        "Tenant": _object(
            name=_text,
            managed_by={"enum": ["file", "database"]},
            state={"enum": ["active", "removed"]},
            models=_texts,
            limits=_any,
            budget=_any,
            weight={"type": "number"},
            priority=_text,
            metadata=_any,
            created_at=_time,
            removed_at=_time,
        ),
        "TenantAndSpent": _also(
            "Tenant",
            spent=_object(day=_object(tokens=_whole, cost=_cost), month=_object(tokens=_whole, cost=_cost)),
            unit=_text,
        ),
        "RemovedTenant": _also("Tenant", revoked_keys=_texts),
        "Tenants": _page("Tenant"),
        "Sums": _object(
            data={"type": "array", "items": _object(**used)},
            since={"type": "string", "format": "date"},
            until={"type": "string", "format": "date"},
            unit=_text,
        ),
        "Record": _object(
            id=_text, at=_time, tenant=_text, key=_text, model=_text, outcome=_text, measured={"type": "boolean"}
        ),
        "Records": _page("Record"),
        "Entry": _object(
            id=_text,
            at=_time,
            actor=_text,
            role=_text,
            action=_text,
            target=_text,
            outcome={"enum": ["done", "denied", "failed"]},
            details=_any,
            address=_text,
            call_id=_text,
        ),
        "Entries": _page("Entry"),
        "Error": _object(error=_object(message=_text, type=_text, param=_maybe, code=_maybe)),
    }
