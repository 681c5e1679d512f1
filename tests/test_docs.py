import importlib
import pathlib

import pytest

from docs import make_losses
from kdjax import losses

TESTS = pathlib.Path(__file__).parent / "losses"
PUBLIC = [name for name in losses.__all__ if name.endswith("_loss")]


def test_the_page_is_what_the_docstrings_make():
  made = make_losses.page()
  assert make_losses.PAGE.read_text(encoding="utf-8") == made, "python -m docs.make_losses"


def test_every_loss_stands_in_one_section():
  listed = [name for entries in make_losses.SECTIONS.values() for name in entries]
  assert sorted(listed) == sorted(PUBLIC)


@pytest.mark.parametrize("name", sorted(make_losses.PACKAGES))
def test_what_is_said_to_be_checked_by_a_package_is(name):
  """Some test file that names the loss also names the package."""
  texts = [path.read_text(encoding="utf-8") for path in TESTS.glob("test_*.py")]
  for package in make_losses.PACKAGES[name].split(", "):
    assert any(f"losses.{name}" in text and package in text for text in texts), package


def test_every_loss_has_a_textbook_version_to_race():
  from benchmarks.textbook import RACES

  assert {f"{name}_loss" for name in RACES} == {n for n in losses.__all__ if n.endswith("_loss")}


def test_the_example_of_compression_keeps_what_was_learned():
  from docs.examples import compress_linen

  found = compress_linen.run()
  losses_of, sizes = zip(*found.values(), strict=True)
  assert losses_of[1] < 1.5 * losses_of[0]
  assert losses_of[3] < 1.2 * losses_of[2] < 0.3
  assert sizes[0] > 3 * sizes[1] > 5 * sizes[2]
  assert sizes[3] < 4 * sizes[0] / 15


def test_an_unknown_name_suggests_the_nearest():
  with pytest.raises(AttributeError, match="did you mean 'kl_loss'"):
    losses.kl_los  # noqa: B018
  with pytest.raises(AttributeError, match="has no attribute 'zzz'"):
    losses.zzz  # noqa: B018


@pytest.mark.parametrize("name", ["plain_jax", "flax_nnx", "equinox_mlp"])
def test_examples_learn_in_few_lines(name):
  module = importlib.import_module(f"docs.examples.{name}")
  history = module.run(steps=100)
  assert history[-1] < 0.8 * history[0]
  assert len(pathlib.Path(module.__file__).read_text(encoding="utf-8").splitlines()) < 40
