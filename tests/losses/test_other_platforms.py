"""What the catalogue losses become on a GPU and a TPU, as far as a machine without one can tell."""

import re

import jax
import jax.numpy as jnp
import pytest

from kdjax import losses, quant
from kdjax.types import FactoredLogits

TOKENS, ITEMS, WIDTH = 512, 1_000_000, 16
PLATFORMS = ("cuda", "tpu")


def logits(width, dtype=jnp.bfloat16):
  shapes = (TOKENS, width), (ITEMS, width)
  return FactoredLogits(*(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes))


LABELS = jax.ShapeDtypeStruct((TOKENS,), jnp.int32)
BEST = losses.TopK(
  jax.ShapeDtypeStruct((TOKENS, 8), jnp.float32),
  jax.ShapeDtypeStruct((TOKENS, 8), jnp.int32),
  jax.ShapeDtypeStruct((TOKENS,), jnp.float32),
)
CASES = {
  losses.catalog_cross_entropy_loss: (LABELS,),
  losses.catalog_kl_loss: (logits(24),),
  losses.catalog_reverse_kl_loss: (logits(24),),
  losses.catalog_jensen_shannon_loss: (logits(24),),
  losses.catalog_distillation_loss: (logits(24), LABELS),
  losses.catalog_top_k_kl_loss: (BEST,),
  losses.catalog_cached_distillation_loss: (BEST, LABELS),
  losses.catalog_top_k_reverse_kl_loss: (BEST,),
}


def lowered(fn, *args):
  return jax.jit(fn).trace(*args).lower(lowering_platforms=PLATFORMS).as_text()


@pytest.mark.parametrize("loss", list(CASES), ids=lambda loss: loss.__name__)
def test_catalogue_losses_lower_in_blocks_of_bfloat16(monkeypatch, loss):
  """Both passes: no [tokens, items] array, and products in bfloat16 that add up in float32."""
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  text = lowered(jax.value_and_grad(loss), logits(WIDTH), *CASES[loss])
  sizes = [
    [int(size) for size in found.split("x")[:-1]]
    for found in re.findall(r"tensor<([\dx]+\w+)>", text)
  ]
  assert not any({TOKENS, ITEMS} <= set(size) for size in sizes)
  blocks = [size for size in sizes if size[:1] == [TOKENS] and size[-1] > 10_000]
  assert blocks, "no block fills an accelerator"
  products = re.findall(r"dot_general.*: \((.*)\) -> (.*)", text)
  assert products
  for factors, product in products:
    assert factors.count("xbf16>") == 2, factors
    assert "xf32>" in product


def test_integer_products_lower_to_integer_products():
  weight = quant.quantize(jnp.ones([1024, 512]), axis=0)
  text = lowered(lambda x: quant.dot(x, weight), jax.ShapeDtypeStruct((256, 1024), jnp.float32))
  assert re.search(r"dot_general.*xi8>, .*xi8>\) -> .*xi32>", text)
