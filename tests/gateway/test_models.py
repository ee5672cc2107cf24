"""/v1/models: what a caller may call, and nothing that tells of the rest."""

from collections.abc import AsyncIterator

import pytest

from tests.harness import Harness, bearer, gateway, key

pytestmark = pytest.mark.anyio

MODELS = [{"name": "llama-8b", "aliases": ["fast"]}, {"name": "llama-70b"}, {"name": "org/qwen"}]
KEYS = [key("everything"), key("llamas", "pg-llamas", models=["llama-*"]), key("nothing", "pg-nothing", models=[])]


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    async with gateway({}, models=MODELS, identity={"keys": KEYS}) as harness:
        yield harness


async def listed(harness: Harness, secret: str) -> list[str]:
    reply = await harness.get("/v1/models", bearer(secret))
    assert (reply.status, reply.json["object"]) == (200, "list")
    assert all(set(model) == {"id", "object", "created", "owned_by"} for model in reply.json["data"])
    return [model["id"] for model in reply.json["data"]]


async def test_a_caller_sees_the_models_it_may_call_and_their_aliases(harness: Harness) -> None:
    """Permissions speak of canonical names; an alias is seen by whoever may call what it stands for."""
    assert await listed(harness, "pg-test-key") == ["llama-8b", "fast", "llama-70b", "org/qwen"]
    assert await listed(harness, "pg-llamas") == ["llama-8b", "fast", "llama-70b"]
    assert await listed(harness, "pg-nothing") == []


@pytest.mark.parametrize("name", ["llama-8b", "fast", "org/qwen"])
async def test_a_model_can_be_asked_for_by_name(harness: Harness, name: str) -> None:
    """Names may hold slashes."""
    reply = await harness.get(f"/v1/models/{name}")
    assert (reply.status, reply.json["id"], reply.json["object"]) == (200, name, "model")


async def test_a_forbidden_model_looks_like_one_that_does_not_exist(harness: Harness) -> None:
    """Same status, same words but for the name that was asked for: nothing can be told apart."""
    forbidden = await harness.get("/v1/models/org/qwen", bearer("pg-llamas"))
    unknown = await harness.get("/v1/models/org/qwex", bearer("pg-llamas"))
    assert forbidden.status == unknown.status == 404
    assert forbidden.json["error"]["code"] == "model_not_found"
    assert forbidden.body == unknown.body.replace(b"qwex", b"qwen")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/llama-8b"])
async def test_models_are_for_callers_with_a_key(harness: Harness, path: str) -> None:
    """Nothing is listed for nobody."""
    assert (await harness.get(path, {})).status == 401
    assert (await harness.get(path, bearer("pg-wrong"))).json["error"]["code"] == "invalid_api_key"
