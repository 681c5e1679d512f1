"""Makes torch_losses.npz: golden values of losses from PyTorch, with the inputs they belong to.

Run it where torch is installed (it is no dependency of kdjax): python tests/golden/torch_losses.py
"""

import pathlib

import numpy as np
import torch
import torch.nn.functional as F

rng = np.random.default_rng(20)
student = rng.normal(scale=3, size=(6, 11)).astype(np.float32)
teacher = rng.normal(scale=3, size=(6, 11)).astype(np.float32)
labels = rng.integers(0, 11, 6)
targets = rng.integers(0, 2, (6, 11)).astype(np.float32)
where = np.array([True, True, False, True, False, True])
TEMPERATURE, SMOOTHING = 3.0, 0.1

values, gradients = {}, {}


def add(name, loss):
  leaf = torch.tensor(student, requires_grad=True)
  value = loss(leaf)
  value.backward()
  values[name], gradients[name] = np.float32(value.item()), leaf.grad.numpy()


t_student, t_teacher = torch.tensor(student), torch.tensor(teacher)
t_labels, t_targets = torch.tensor(labels), torch.tensor(targets)
ignored = torch.where(torch.tensor(where), t_labels, -100)


def soft(logits):
  return F.log_softmax(logits / TEMPERATURE, -1)


def kl(leaf, reduction):
  return F.kl_div(soft(leaf), soft(t_teacher), reduction=reduction, log_target=True)


add("kl", lambda z: TEMPERATURE**2 * kl(z, "batchmean"))
add("kl_sum", lambda z: TEMPERATURE**2 * kl(z, "sum"))
add("cross_entropy", lambda z: F.cross_entropy(z, t_labels))
add("cross_entropy_masked", lambda z: F.cross_entropy(z, ignored))
add("cross_entropy_smoothed", lambda z: F.cross_entropy(z, t_labels, label_smoothing=SMOOTHING))
add("binary_cross_entropy", lambda z: F.binary_cross_entropy_with_logits(z, t_targets))
add("mse", lambda z: F.mse_loss(z, t_teacher))
add(
  "bernoulli_kl",
  lambda z: (
    F.binary_cross_entropy_with_logits(z, t_teacher.sigmoid())
    - F.binary_cross_entropy_with_logits(t_teacher, t_teacher.sigmoid())
  ),
)
add("bpr", lambda z: -F.logsigmoid(z[:, :1] - z[:, 1:]).mean())

np.savez_compressed(
  pathlib.Path(__file__).with_suffix(".npz"),
  made_with=np.array(f"torch {torch.__version__}, tests/golden/torch_losses.py"),
  student=student,
  teacher=teacher,
  labels=labels,
  targets=targets,
  where=where,
  temperature=TEMPERATURE,
  smoothing=SMOOTHING,
  **{f"value_{name}": value for name, value in values.items()},
  **{f"gradient_{name}": value for name, value in gradients.items()},
)
