"""int8 and int4 weights: made, calibrated, trained, and multiplied in integers."""

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
from kdjax.quant.conv import conv, conv_plan
from kdjax.quant.dot import dot
from kdjax.quant.equalize import awq, smooth_quant, with_input_scales
from kdjax.quant.integer import (
  MAX_AFFINE_CONTRACTION,
  MAX_CONTRACTION,
  DotPlan,
  dot_plan,
  integer_dot,
)
from kdjax.quant.mixed import (
  PRECISIONS,
  Sensitivity,
  choose_precisions,
  measure_sensitivity,
  mixed_params,
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
  widen_params,
)
from kdjax.quant.qtensor import QTensor, dequantize, fake_quant, is_qtensor, quantize
from kdjax.quant.second_order import correct_biases, gptq
from kdjax.quant.train import as_served, first_scales, straight_through, straight_through_params

__all__ = [
  "MAX_AFFINE_CONTRACTION",
  "MAX_CONTRACTION",
  "PRECISIONS",
  "AbsMax",
  "DotPlan",
  "Histogram",
  "LeafSummary",
  "QTensor",
  "Sensitivity",
  "absmax",
  "as_served",
  "awq",
  "choose_precisions",
  "contraction_axes",
  "conv",
  "conv_plan",
  "correct_biases",
  "dequantize",
  "dequantize_params",
  "dot",
  "dot_plan",
  "entropy_scale",
  "fake_quant",
  "first_scales",
  "format_quantized",
  "gptq",
  "histogram",
  "integer_dot",
  "is_embedding",
  "is_qtensor",
  "is_weight",
  "measure_sensitivity",
  "mixed_params",
  "mse_scale",
  "percentile_scale",
  "quantize",
  "quantize_params",
  "search_scale",
  "smooth_quant",
  "straight_through",
  "straight_through_params",
  "summarize_quantized",
  "widen_params",
  "with_input_scales",
]
