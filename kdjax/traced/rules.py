"""The rules of all primitives that can be followed."""

from typing import Any

from kdjax.traced.extents import Extent
from kdjax.traced.lookups import LOOKUPS
from kdjax.traced.moves import MOVES
from kdjax.traced.program import Operation, Value
from kdjax.traced.rule import At, Rule, fill_elementwise, tie_elementwise
from kdjax.traced.sums import SUMS


def _fill_same(op: Operation, at: At, atom: Extent, out: Value) -> Any:
  """Results are operands, one by one."""
  return at(op.ins[op.outs.index(out)], atom)


ELEMENTWISE = {
  "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh",
  "cbrt", "ceil", "clamp", "convert_element_type", "cos", "cosh", "digamma", "div", "eq", "erf",
  "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "imag", "integer_pow",
  "is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg",
  "nextafter", "not", "or", "pow", "real", "reduce_precision", "rem", "round", "rsqrt",
  "select_n", "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign", "sin",
  "sinh", "sqrt", "square", "sub", "tan", "tanh", "xor", "population_count",
}  # fmt: skip
SAME = {
  "copy", "copy_p", "stop_gradient", "name", "optimization_barrier", "sharding_constraint",
}  # fmt: skip

RULES: dict[str, Rule] = {
  **{name: Rule(tie_elementwise, fill_elementwise) for name in ELEMENTWISE},
  **{name: Rule(tie_elementwise, _fill_same) for name in SAME},
  **MOVES,
  **LOOKUPS,
  **SUMS,
}
