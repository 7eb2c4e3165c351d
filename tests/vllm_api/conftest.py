"""The yard: stand-in servers that are ended whatever happens."""

import pytest
from standin_servers import Yard


@pytest.fixture
def yard(tmp_path):
    yard = Yard(tmp_path)
    yield yard
    yard.end()
