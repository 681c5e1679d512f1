import pytest

from kdjax.quant.conv import LIMITS as OF_CONVOLUTIONS
from kdjax.quant.integer import LIMITS as OF_PRODUCTS


@pytest.fixture
def integers_everywhere(monkeypatch):
  """Integer products at every size, as on a backend that nobody has measured."""
  monkeypatch.delitem(OF_PRODUCTS, "cpu")
  monkeypatch.delitem(OF_CONVOLUTIONS, "cpu")
