"""int8 weights and the integer products that make them fast."""

from kdjax.quant.dot import dot, straight_through_dot
from kdjax.quant.integer import MAX_CONTRACTION, DotPlan, dot_plan, integer_dot
from kdjax.quant.qtensor import QTensor, dequantize, fake_quant, is_qtensor, quantize

__all__ = [
  "MAX_CONTRACTION",
  "DotPlan",
  "QTensor",
  "dequantize",
  "dot",
  "dot_plan",
  "fake_quant",
  "integer_dot",
  "is_qtensor",
  "quantize",
  "straight_through_dot",
]
