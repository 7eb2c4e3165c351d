from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
from page_client import DEADLINE_S


@pytest.fixture
async def browser() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=DEADLINE_S)
    # A cookie of an address instead of a name.
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar, timeout=timeout) as session:
        yield session
