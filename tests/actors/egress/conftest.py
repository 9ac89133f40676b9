"""What the tests of egress share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from actors.egress.credentials import Credentials
from actors.egress.gateway import Gateway
from actors.egress.names import Names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.internet import Internet


@pytest.fixture
def names(internet: Internet) -> Iterator[Names]:
    """A resolver that knows the internet's servers."""
    names = Names(internet.pins)
    yield names
    names.close()


@pytest.fixture
def gateway(names: Names) -> Gateway:
    """A gateway without credentials."""
    return Gateway(names=names, credentials=Credentials(), connect_timeout=3)
