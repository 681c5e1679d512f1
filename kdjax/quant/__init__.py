"""int8 weights and the integer products that make them fast."""

from kdjax.quant.calibrate import AbsMax, absmax
from kdjax.quant.dot import dot, straight_through_dot
from kdjax.quant.integer import (
  MAX_AFFINE_CONTRACTION,
  MAX_CONTRACTION,
  DotPlan,
  dot_plan,
  integer_dot,
)
from kdjax.quant.params import (
  LeafSummary,
  contraction_axes,
  dequantize_params,
  format_quantized,
  is_embedding,
  is_weight,
  quantize_params,
  summarize_quantized,
)
from kdjax.quant.qtensor import QTensor, dequantize, fake_quant, is_qtensor, quantize

__all__ = [
  "MAX_AFFINE_CONTRACTION",
  "MAX_CONTRACTION",
  "AbsMax",
  "DotPlan",
  "LeafSummary",
  "QTensor",
  "absmax",
  "contraction_axes",
  "dequantize",
  "dequantize_params",
  "dot",
  "dot_plan",
  "fake_quant",
  "format_quantized",
  "integer_dot",
  "is_embedding",
  "is_qtensor",
  "is_weight",
  "quantize",
  "quantize_params",
  "straight_through_dot",
  "summarize_quantized",
]
