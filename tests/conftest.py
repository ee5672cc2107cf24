"""What all tests share: asyncio as the one event loop, and nothing else that is not asked for by name."""

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
