"""The OpenAPI document that is served, against the gateway that serves it: what it says is so, whatever is sent."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import APIOperation, Case, CheckFunction, GenerationMode
from schemathesis.core.result import Ok
from schemathesis.core.transport import Response
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.engines import ScriptedEngines, scripted
from tests.harness import CHAT, MODEL, Harness, bearer, gateway
from tests.wire_client import Headers

pytestmark = pytest.mark.anyio

# The same calls in every run: what is found at random here belongs into a table elsewhere.
GENERATED = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
OPEN_TO_ALL = {"/livez", "/readyz", "/metrics", "/openapi.json"}
# No schema can say all that makes a call wrong: numbers beyond 64 bits, or fields that do not go together.
UNSAYABLE: list[CheckFunction] = [positive_data_acceptance]
LONGEST_REFUSAL = 1000

AnyCase = Case[Any]
Operation = APIOperation[Any, Any, Any, Any]
Look = Callable[[AnyCase, Response], None]


@pytest.fixture
async def engines() -> AsyncIterator[ScriptedEngines]:
    async with scripted("a") as engines:
        yield engines


@pytest.fixture
async def harness(engines: ScriptedEngines) -> AsyncIterator[Harness]:
    async with gateway({"a": engines["a"].url}) as harness:
        yield harness


class Explorer:
    """Sends what the document allows, or what it forbids, and looks at what comes back.

    The tool is a synchronous one, so all of this happens in a thread beside the gateway's loop.
    """

    def __init__(self, url: str, examples: int, *, with_keys: bool = True) -> None:
        """So many `examples` an operation. Calls name the model that there is, so that they come further.

        Without keys in the document the tool leaves the credential alone, and only bodies are made wrong.
        """
        self._url = url
        self._settings = settings(GENERATED, max_examples=examples)
        document = requests.get(f"{url}/openapi.json", timeout=5).json()
        document["components"]["schemas"]["ChatCall"]["properties"]["model"] = {"const": MODEL}
        if not with_keys:
            document["paths"][CHAT]["post"]["security"] = []
        self._schema = schemathesis.openapi.from_dict(document)
        self.statuses: dict[str, set[int]] = {}

    def operations(self) -> list[Operation]:
        return [found.ok() for found in self._schema.get_all_operations() if isinstance(found, Ok)]

    def explore(self, operation: Operation, mode: GenerationMode, headers: dict[str, str], look: Look) -> None:
        statuses = self.statuses.setdefault(operation.path, set())

        @self._settings
        @given(operation.as_strategy(generation_mode=mode))
        def one(case: AnyCase) -> None:
            reply = case.call(self._url, session, headers)
            statuses.add(reply.status_code)
            look(case, reply)

        with requests.Session() as session:
            one()


async def test_every_answer_to_what_is_allowed_is_as_the_document_says(
    harness: Harness, engines: ScriptedEngines
) -> None:
    """Status, media type, headers and body of every operation; nothing is our fault."""

    def as_documented(case: AnyCase, reply: Response) -> None:
        case.validate_response(reply, headers=bearer(), excluded_checks=UNSAYABLE)

    def work() -> dict[str, set[int]]:
        explorer = Explorer(harness.url, examples=20)
        for operation in explorer.operations():
            explorer.explore(operation, GenerationMode.POSITIVE, bearer(), as_documented)
        return explorer.statuses

    statuses = await asyncio.to_thread(work)
    assert set(statuses) == {*OPEN_TO_ALL, CHAT, "/v1/models", "/v1/models/{name}"}
    assert {200, 400} <= statuses[CHAT]
    assert engines["a"].calls


async def test_what_the_document_forbids_is_refused_in_few_words(harness: Harness, engines: ScriptedEngines) -> None:
    """A call that breaks its schema is the caller's fault, and no engine hears of it."""

    def is_refused(case: AnyCase, reply: Response) -> None:
        case.validate_response(reply, headers=bearer())
        assert len(reply.content) < LONGEST_REFUSAL

    def work() -> dict[str, set[int]]:
        explorer = Explorer(harness.url, examples=40, with_keys=False)
        (operation,) = [operation for operation in explorer.operations() if operation.path == CHAT]
        explorer.explore(operation, GenerationMode.NEGATIVE, bearer(), is_refused)
        return explorer.statuses

    statuses = await asyncio.to_thread(work)
    assert statuses[CHAT] <= {400, 415}
    assert engines["a"].calls == []


async def test_there_is_no_way_past_authentication(harness: Harness, engines: ScriptedEngines) -> None:
    """401 to everything but the probes and the document itself, without a key and with a wrong one."""

    def is_refused(case: AnyCase, reply: Response) -> None:
        for answer in (reply, case.call(harness.url, headers=bearer("pg-wrong"))):
            assert (answer.status_code == 401) == (case.operation.path not in OPEN_TO_ALL)

    def work() -> None:
        explorer = Explorer(harness.url, examples=10)
        for operation in explorer.operations():
            explorer.explore(operation, GenerationMode.POSITIVE, {}, is_refused)
            if operation.path == CHAT:
                explorer.explore(operation, GenerationMode.NEGATIVE, {}, is_refused)

    await asyncio.to_thread(work)
    assert engines["a"].calls == []


async def test_what_is_served_is_in_it_and_what_is_in_it_is_served(harness: Harness) -> None:
    """Every route, with the methods that it has."""
    document = (await harness.get("/openapi.json", {})).json
    assert sorted(document["paths"]) == sorted(
        path.replace("{name:path}", "{name}") for path in harness.serving.gateway.public.paths
    )
    for path, item in document["paths"].items():
        known = {method.upper() for method in item} & {"GET", "POST", "PUT", "DELETE", "PATCH"}
        for method in ("GET", "POST"):
            reply = await _asked(harness, method, path.replace("{name}", MODEL), bearer())
            assert (reply == 405) == (method not in known)


async def _asked(harness: Harness, method: str, path: str, headers: Headers) -> int:
    if method == "GET":
        return (await harness.get(path, headers)).status
    return (await harness.post(path=path, headers=headers)).status
