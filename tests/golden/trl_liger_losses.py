"""Makes trl_liger_losses.npz: golden values of losses of trl and liger-kernel.

The packages are no dependencies of kdjax. Run it where they are installed:
python tests/golden/trl_liger_losses.py
(torch 2.13.0, numpy, trl 1.16.0, liger-kernel 0.8.5; all on CPU).
"""

import importlib.metadata
import pathlib
import types

import numpy as np
import torch
from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
from trl.experimental.gkd import GKDTrainer
from trl.experimental.gold.gold_trainer import ULDLoss

rng = np.random.default_rng(31)


def normal(*shape):
  return rng.normal(scale=1.5, size=shape).astype(np.float32)


inputs = {
  "logits_s": normal(3, 5, 7),
  "logits_t": normal(3, 5, 7),
  "wide_t": normal(3, 5, 9),
  "labels": rng.integers(0, 7, (3, 5)),
  "query_s": normal(12, 4),
  "table_s": normal(30, 4),
  "query_t": normal(12, 6),
  "table_t": normal(30, 6),
  "items": rng.integers(0, 30, 12),
}
inputs["labels"][:, -1] = -100  # Padding.
inputs["labels"][1, 2:] = -100
inputs["items"][3] = -100
x = {name: torch.tensor(value) for name, value in inputs.items()}
values, gradients = {}, {}


def add(name, by, loss):
  """Value of `loss(z)` at one input, and its gradient there."""
  z = x[by].clone().requires_grad_()
  value = loss(z)
  value.backward()
  values[name], gradients[name] = value.detach().numpy().reshape(()), z.grad.numpy()


for beta in (0.0, 0.3, 0.5, 1.0):
  for temperature in (1.0, 2.0):
    add(
      f"jsd_{beta}_{temperature}",
      "logits_s",
      lambda z, beta=beta, temperature=temperature: GKDTrainer.generalized_jsd_loss(
        z, x["logits_t"], labels=x["labels"], beta=beta, temperature=temperature
      ),
    )

uld = ULDLoss(
  types.SimpleNamespace(
    uld_crossentropy_weight=0.0,
    uld_distillation_weight=1.0,
    uld_student_temperature=1.5,
    uld_teacher_temperature=1.5,
    uld_skip_student_eos=False,
    uld_skip_teacher_eos=False,
    use_extended_uld=False,
    uld_token_merge_strategy="product",
  )
)
tokens = torch.zeros(3, 5, dtype=torch.long)
add("uld", "logits_s", lambda z: uld(z, x["wide_t"], tokens, tokens, tokens, tokens))

for beta in (0.0, 0.5, 1.0):
  fused = LigerFusedLinearJSDLoss(
    weight_hard_loss=0.2, weight_soft_loss=0.8, beta=beta, temperature=1.0, compiled=False
  )
  for by in ("query_s", "table_s"):
    parts = {"query_s": x["query_s"], "table_s": x["table_s"]}
    add(
      f"fused_{beta}_{by}",
      by,
      lambda z, by=by, parts=parts, fused=fused: fused(
        *(parts | {by: z}).values(), x["query_t"], x["table_t"], x["items"]
      ),
    )

if __name__ == "__main__":
  packages = ("torch", "trl", "liger-kernel")
  versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
  np.savez_compressed(
    pathlib.Path(__file__).with_suffix(".npz"),
    made_with=np.array(f"{versions}, tests/golden/trl_liger_losses.py"),
    **inputs,
    **{f"value_{name}": value for name, value in values.items()},
    **{f"gradient_{name}": value for name, value in gradients.items()},
  )
