import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import pytest
import tiny

from experiments import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A trained teacher of every family that a test asks for, trained once."""
  folder = tmp_path_factory.mktemp("teachers")

  def get(family="sasrec"):
    train.run(tiny.train_config(family), folder / family)
    return folder / family

  return get
