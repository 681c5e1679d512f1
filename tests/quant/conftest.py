import pytest

from kdjax.quant import integer


@pytest.fixture
def integers_everywhere(monkeypatch):
  """Integer products at every size, as on a backend that nobody has measured."""
  monkeypatch.setattr(integer, "LIMITS", {})
