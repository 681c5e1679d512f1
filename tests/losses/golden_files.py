"""Stored values of independent packages, and the scripts in tests/golden that made them."""

import importlib.util
import pathlib
import runpy

import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "golden"


def load(name):
  """The arrays of one file."""
  with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
    return dict(file)


def check_script(name, golden, *, packages, groups=("values", "gradients")):
  """The script of a file still makes what is in it; skips where its packages are absent."""
  missing = [package for package in packages if not importlib.util.find_spec(package)]
  if missing:
    pytest.skip(f"not installed here: {', '.join(missing)}")
  made = runpy.run_path(str(FOLDER / f"{name}.py"))
  for group in groups:
    kind = group.removesuffix("s")
    stored = {key for key in golden if key.startswith(f"{kind}_")}
    assert stored == {f"{kind}_{key}" for key in made[group]}
    for key, value in made[group].items():
      np.testing.assert_allclose(golden[f"{kind}_{key}"], value, rtol=1e-5, atol=1e-6)
