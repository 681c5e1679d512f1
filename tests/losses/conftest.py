"""The order of the tests of losses."""


def pytest_collection_modifyitems(items):
  """Runs the tests of a case in the table of losses together: they share its compiled programs."""
  places = [i for i, item in enumerate(items) if item.path.name == "test_loss_table.py"]

  def case(item):
    return item.callspec.id if hasattr(item, "callspec") else ""

  by_case = sorted((items[i] for i in places), key=case)
  for i, item in zip(places, by_case, strict=True):
    items[i] = item
