"""Engines without an adapter, on tiny random bases in float32."""

import pytest

from lora_cot.engines.local import LocalEngine
from lora_cot.formats import FORMATS


@pytest.fixture
def engine(tiny):
    """An engine on the tiny random LLaVA, float32."""
    return LocalEngine(tiny, FORMATS["direct"])


@pytest.fixture
def each_engine(each_tiny):
    """An engine on a tiny random base of each kind, float32."""
    return LocalEngine(each_tiny, FORMATS["direct"])
