"""What every test of this room may rely on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edge_runtime.kernels import native


@pytest.fixture(autouse=True, scope="module")
def _selected_isa_is_put_back() -> Iterator[None]:
    """A file whose tests choose kernels leaves the next one those that were chosen before."""
    before = native.selected_isa()
    yield
    native.select_isa(before)
