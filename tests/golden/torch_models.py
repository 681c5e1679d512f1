"""Writes torch_models.npz: what PyTorch's own transformer and GRU layers compute.

  python tests/golden/torch_models.py      (in an environment with torch and numpy)

The stored weights are drawn here from a seed; names say which parameter of ours each one is, and
kernels are stored `[in, out]`, PyTorch's transposed.
"""

import pathlib

import numpy as np
import torch

DIM, HEADS, MLP, LENGTH, BATCH, HIDDEN = 8, 2, 12, 7, 3, 5


def draw(generator: np.random.Generator, *shape: int, mean: float = 0.0) -> np.ndarray:
  return generator.normal(mean, 0.4, shape).astype(np.float32)


def load(parameter: torch.Tensor, value: np.ndarray) -> None:
  with torch.no_grad():
    parameter.copy_(torch.tensor(value))


def block_weights(generator: np.random.Generator) -> dict[str, np.ndarray]:
  out = {}
  for norm in ("norm_1", "norm_2"):
    out[f"{norm}/scale"] = draw(generator, DIM, mean=1.0)
    out[f"{norm}/bias"] = draw(generator, DIM)
  for name in ("query", "key", "value", "out"):
    out[f"attention/{name}/kernel"] = draw(generator, DIM, DIM)
    out[f"attention/{name}/bias"] = draw(generator, DIM)
  for name, shape in (("up", (DIM, MLP)), ("down", (MLP, DIM))):
    out[f"{name}/kernel"], out[f"{name}/bias"] = draw(generator, *shape), draw(generator, shape[1])
  return out


def torch_block(w: dict[str, np.ndarray], activation: str) -> torch.nn.TransformerEncoderLayer:
  layer = torch.nn.TransformerEncoderLayer(
    DIM,
    HEADS,
    MLP,
    dropout=0.0,
    activation=(lambda x: torch.nn.functional.gelu(x, approximate="tanh"))
    if activation == "gelu"
    else activation,
    layer_norm_eps=1e-6,
    batch_first=True,
    norm_first=True,
  ).eval()
  inward = [w[f"attention/{name}/kernel"].T for name in ("query", "key", "value")]
  load(layer.self_attn.in_proj_weight, np.concatenate(inward))
  biases = [w[f"attention/{name}/bias"] for name in ("query", "key", "value")]
  load(layer.self_attn.in_proj_bias, np.concatenate(biases))
  for module, name in (
    (layer.self_attn.out_proj, "attention/out"),
    (layer.linear1, "up"),
    (layer.linear2, "down"),
  ):
    load(module.weight, w[f"{name}/kernel"].T)
    load(module.bias, w[f"{name}/bias"])
  for module, name in ((layer.norm1, "norm_1"), (layer.norm2, "norm_2")):
    load(module.weight, w[f"{name}/scale"])
    load(module.bias, w[f"{name}/bias"])
  return layer


def main() -> None:
  generator = np.random.default_rng(20)
  out: dict[str, np.ndarray] = {"torch": np.array(torch.__version__)}
  x = draw(generator, BATCH, LENGTH, DIM)
  out["x"] = x

  causal = torch.triu(torch.ones(LENGTH, LENGTH, dtype=torch.bool), diagonal=1)
  for name, activation, mask in (("causal", "relu", causal), ("both", "gelu", None)):
    weights = block_weights(generator)
    layer = torch_block(weights, activation)
    out |= {f"{name}/{path}": value for path, value in weights.items()}
    inputs = torch.tensor(x, requires_grad=True)
    y = layer(inputs, src_mask=mask)
    y.square().sum().backward()
    out[f"{name}_y"], out[f"{name}_dx"] = y.detach().numpy(), inputs.grad.numpy()
    out[f"{name}_dquery"] = layer.self_attn.in_proj_weight.grad[:DIM].T.numpy()

  # PyTorch orders the gates r, z, n, as we do.
  gru = torch.nn.GRU(DIM, HIDDEN, batch_first=True)
  weights = {
    "input/kernel": draw(generator, DIM, 3 * HIDDEN),
    "input/bias": draw(generator, 3 * HIDDEN),
    "recurrent_kernel": draw(generator, HIDDEN, 3 * HIDDEN),
    "recurrent_bias": draw(generator, 3 * HIDDEN),
  }
  load(gru.weight_ih_l0, weights["input/kernel"].T)
  load(gru.bias_ih_l0, weights["input/bias"])
  load(gru.weight_hh_l0, weights["recurrent_kernel"].T)
  load(gru.bias_hh_l0, weights["recurrent_bias"])
  y, _ = gru(torch.tensor(x))
  y.square().sum().backward()
  out |= {f"gru/{path}": value for path, value in weights.items()}
  out["gru_y"], out["gru_drecurrent"] = y.detach().numpy(), gru.weight_hh_l0.grad.T.numpy()
  np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **out)


if __name__ == "__main__":
  main()
