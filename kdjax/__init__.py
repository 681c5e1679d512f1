"""kdjax: knowledge distillation, pruning and int8 quantization as pure functions on pytrees."""

__version__ = "0.1.0"
