"""The fixture `servers`: stand-in servers that are stopped whatever the test does."""

import pytest
from standin_servers import StandinServers


@pytest.fixture
def servers(tmp_path):
    servers = StandinServers(tmp_path)
    yield servers
    servers.end()
