"""Every catalogue loss: bfloat16 with float32 sums, two widths, blocks chosen from the shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.losses import blocks, factored
from kdjax.types import FactoredLogits

TOKENS, ITEMS = 24, 60


def logits(width, seed, dtype):
  rng = np.random.default_rng(seed)
  shapes = (TOKENS, width), (ITEMS, width), (ITEMS,)
  return FactoredLogits(*(jnp.asarray(rng.normal(size=s), dtype) for s in shapes))


def rest_of(dtype):
  """What each loss gets beside the student: a wider teacher, or what is kept of it."""
  teacher = logits(9, 1, dtype)
  best = losses.catalog_top_k_targets(teacher, 5)
  drawn = losses.catalog_sample_targets(jax.random.key(0), teacher, 4, keep=3)
  labels = jnp.arange(TOKENS)
  return {
    "cross_entropy": (labels,),
    "kl": (teacher,),
    "reverse_kl": (teacher,),
    "jensen_shannon": (teacher,),
    "distillation": (teacher, labels),
    "top_k_kl": (best,),
    "top_k_reverse_kl": (best,),
    "sampled_cross_entropy": (drawn,),
  }


NAMES = list(rest_of(jnp.float32))
HALF, WHOLE = rest_of(jnp.bfloat16), rest_of(jnp.float32)


def step(name, **options):
  loss = getattr(losses, f"catalog_{name}_loss")
  return jax.jit(jax.value_and_grad(lambda student, *rest: loss(student, *rest, **options)))


@pytest.mark.parametrize("block", [None, 16])
@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_multiplies_in_bfloat16_and_adds_in_float32(name, block):
  student = logits(6, 0, jnp.bfloat16)
  fn, rest = step(name, block=block), HALF[name]
  products = [x for x in fn.lower(student, *rest).as_text().splitlines() if "dot_general" in x]
  assert products
  assert all("bf16" in line and "xf32>" in line.split("->")[1] for line in products)
  value, grads = fn(student, *rest)
  assert value.dtype == jnp.float32
  as_float = lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x  # noqa: E731
  exact, exact_grads = fn(*jax.tree.map(as_float, (student, *rest)))
  np.testing.assert_allclose(value, exact, rtol=2e-3)
  for half, whole in zip(grads, exact_grads, strict=True):
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half, whole, atol=0.02 * float(jnp.max(jnp.abs(whole))))


@pytest.mark.parametrize("kept_width", [0, 8, 99])
@pytest.mark.parametrize("name", NAMES)
def test_every_way_to_cut_gives_the_same(name, kept_width, monkeypatch):
  """Whole, in ragged blocks, with exponentials kept, and as the shapes would have it elsewhere."""
  student, rest, found = logits(6, 0, jnp.float32), WHOLE[name], []
  monkeypatch.setattr(blocks, "_KEPT_WIDTH", kept_width)  # Of all, the wider ones, none.
  jax.clear_caches()
  for chosen in (
    blocks.Blocks(TOKENS, ITEMS),
    blocks.Blocks(8, 16),
    blocks.Blocks(8, 16, None, True),
    blocks.Blocks(16, ITEMS),
    blocks.Blocks(TOKENS, 16, direct=True),
    blocks.Blocks(TOKENS, ITEMS, direct=True),
  ):
    monkeypatch.setattr(factored, "choose_blocks", lambda *_, chosen=chosen: chosen)
    found.append(step(name)(student, *rest))
  for other in found[1:]:
    for a, e in zip(jax.tree.leaves(other), jax.tree.leaves(found[0]), strict=True):
      np.testing.assert_allclose(a, e, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "jensen_shannon", "distillation"])
def test_student_and_teacher_of_different_dtypes(name):
  student = logits(6, 0, jnp.bfloat16)
  value, grads = step(name)(student, *WHOLE[name])
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), student)
  np.testing.assert_allclose(value, step(name)(wide, *WHOLE[name])[0], rtol=1e-3)
  assert grads.table.dtype == jnp.bfloat16


@pytest.mark.parametrize("num_items", [1, 500, 16_384, 100_000, 128_256, 10**6, 10**8])
@pytest.mark.parametrize("num_tokens", [1, 100, 1024, 65_536])
@pytest.mark.parametrize("dear", [True, False])
@pytest.mark.parametrize("width", [64, 4096])
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_blocks_are_chosen_from_the_shapes(
  num_tokens, num_items, dear, width, backend, monkeypatch
):
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  chosen = blocks.choose_blocks(num_tokens, num_items, None, None, dear, width)
  most = blocks._BLOCK
  if backend != "cpu":
    most = blocks._DEVICE_WIDE_BLOCK if width == 4096 else blocks._DEVICE_BLOCK
    assert chosen.direct == (chosen.tokens >= num_tokens)
  else:
    assert not chosen.direct
  assert chosen.tokens % 8 == 0
  assert 1 <= chosen.items <= num_items
  assert chosen.items == num_items or chosen.items % 64 == 0
  assert dear or not chosen.keep
  assert chosen.items * min(chosen.tokens, num_tokens) <= 1.1 * max(most, 64 * chosen.items)
  if chosen.keep:
    # What is kept is less than a seventh of the matrix, and of bounded size.
    assert chosen.tokens * 7 <= num_tokens
    assert chosen.tokens * num_items <= 1.1 * blocks._KEPT


@pytest.mark.parametrize("name", ["cross_entropy", "kl", "distillation", "jensen_shannon"])
def test_gradients_that_come_whole_from_a_block_need_no_sums_in_float32(name, monkeypatch):
  """The table's in its own dtype from the start, and labels that many tokens share are not lost."""
  student, rest, found = logits(6, 0, jnp.bfloat16), WHOLE[name], []
  if name in ("cross_entropy", "distillation"):
    rest = (*rest[:-1], jnp.zeros_like(rest[-1]))
  for direct in (False, True):
    chosen = blocks.Blocks(TOKENS, 16, direct=direct)
    monkeypatch.setattr(factored, "choose_blocks", lambda *_, chosen=chosen: chosen)
    found.append(jax.jit(step(name))(student, *rest))
  (value, grads), (direct_value, direct_grads) = found
  np.testing.assert_array_equal(value, direct_value)
  for a, b in zip(grads, direct_grads, strict=True):
    assert a.dtype == b.dtype == jnp.bfloat16
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    np.testing.assert_allclose(b, a, atol=0.01 * np.max(np.abs(a)))


def test_tables_that_are_wide_or_small_are_met_whole_by_accelerators(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")

  def choose(tokens, items, width):
    return blocks.choose_blocks(tokens, items, None, None, False, width)[:2]

  assert choose(8192, 128_256, 4096) == (1024, 128_256)
  assert choose(8192, 128_256, 512) == (8192, 2048)
  assert choose(16_384, 3416, 64) == (4096, 3416)
  assert choose(32_768, 1_000_000, 4096) == (16_384, 1024)
