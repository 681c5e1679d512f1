"""int8 weights and the integer products that make them fast."""

from kdjax.quant.calibrate import (
  AbsMax,
  Histogram,
  absmax,
  entropy_scale,
  histogram,
  mse_scale,
  percentile_scale,
  search_scale,
)
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
from kdjax.quant.second_order import correct_biases, gptq

__all__ = [
  "MAX_AFFINE_CONTRACTION",
  "MAX_CONTRACTION",
  "AbsMax",
  "DotPlan",
  "Histogram",
  "LeafSummary",
  "QTensor",
  "absmax",
  "contraction_axes",
  "correct_biases",
  "dequantize",
  "dequantize_params",
  "dot",
  "dot_plan",
  "entropy_scale",
  "fake_quant",
  "format_quantized",
  "gptq",
  "histogram",
  "integer_dot",
  "is_embedding",
  "is_qtensor",
  "is_weight",
  "mse_scale",
  "percentile_scale",
  "quantize",
  "quantize_params",
  "search_scale",
  "straight_through_dot",
  "summarize_quantized",
]
