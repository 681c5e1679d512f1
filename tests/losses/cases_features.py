"""Cases of the losses on features, position by position: `features` and `activations`."""

import numpy as np
from loss_cases import Case, mse_gradient, mse_oracle, normal

from kdjax import losses

DISTILL = {"teachers": (1,), "equal": ((0, 1),)}
STANDARD = -np.sqrt(2 / np.pi)  # The mean of the negative half of a standard Gaussian.


def directions(x):
  return np.float64(x) / np.linalg.norm(np.float64(x), axis=-1, keepdims=True)


def cosine_oracle(student, teacher):
  return 1 - (directions(student) * directions(teacher)).sum(-1)


def cosine_gradient(student, teacher):
  s, t = directions(student), directions(teacher)
  across = t - s * (s * t).sum(-1, keepdims=True)
  return -across / np.linalg.norm(np.float64(student), axis=-1, keepdims=True)


def patient_oracle(student, teacher):
  return ((directions(student) - directions(teacher)) ** 2).sum(-1)


def patient_gradient(student, teacher):
  return 2 * cosine_gradient(student, teacher)


def with_variance(shape):
  """Mean `[12, *shape]`, then a positive variance `[12, *shape]` or, by channel, `[d]`; teacher."""

  def make(rng):
    mean, teacher = normal((3, 8), (3, 8))(rng)
    return mean, np.exp(rng.normal(size=shape)).astype(np.float32), teacher

  return make


def variational_oracle(mean, variance, teacher):
  variance = np.float64(variance)
  density = np.exp(-((teacher - np.float64(mean)) ** 2) / (2 * variance))
  density = density / np.sqrt(2 * np.pi * variance)
  return -(np.log(density) + np.log(2 * np.pi) / 2).mean(-1)


def variational_gradient(mean, variance, teacher):
  return (np.float64(mean) - teacher) / variance / mean.shape[-1]


def boundary_oracle(student, teacher, margin=1.0):
  student = np.float64(student)
  on = np.maximum(0, margin - student) ** 2
  off = np.maximum(0, margin + student) ** 2
  return np.where(teacher > 0, on, off).mean(-1)


def boundary_gradient(student, teacher, margin=1.0):
  student = np.float64(student)
  on, off = np.maximum(0, margin - student), np.maximum(0, margin + student)
  return 2 * np.where(teacher > 0, -on, off) / student.shape[-1]


def overhaul_parts(student, teacher, margin):
  student, target = np.float64(student), np.maximum(np.float64(teacher), margin)
  free = (student <= target) & (target <= 0)
  return np.where(free, 0, student - target)


def overhaul_oracle(student, teacher, margin=STANDARD):
  return (overhaul_parts(student, teacher, margin) ** 2).mean(-1)


def overhaul_gradient(student, teacher, margin=STANDARD):
  return 2 * overhaul_parts(student, teacher, margin) / student.shape[-1]


CASES = [
  Case(losses.hint_loss, normal((3, 8), (3, 8)), mse_oracle, gradient=mse_gradient, **DISTILL),
  Case(
    losses.cosine_feature_loss,
    normal((3, 8), (3, 8)),
    cosine_oracle,
    gradient=cosine_gradient,
    **DISTILL,
  ),
  Case(
    losses.patient_loss,
    normal((3, 8), (3, 8)),
    patient_oracle,
    gradient=patient_gradient,
    **DISTILL,
  ),
  Case(
    losses.variational_loss,
    with_variance((12, 3, 8)),
    variational_oracle,
    students=(0, 1),
    teachers=(2,),
    gradient=variational_gradient,
  ),
  Case(
    losses.variational_loss,
    with_variance((8,)),
    variational_oracle,
    students=(0, 1),
    teachers=(2,),
    shared=(1,),
    gradient=variational_gradient,
    name="by-channel",
  ),
  Case(
    losses.activation_boundary_loss,
    normal((3, 8), (3, 8)),
    boundary_oracle,
    {"margin": 0.5},
    teachers=(1,),
    gradient=boundary_gradient,
  ),
  Case(
    losses.overhaul_loss,
    normal((3, 8), (3, 8)),
    overhaul_oracle,
    gradient=overhaul_gradient,
    **DISTILL,
  ),
  Case(
    losses.overhaul_loss,
    normal((3, 8), (3, 8)),
    overhaul_oracle,
    {"margin": np.linspace(-2, 0, 8, dtype=np.float32)},
    gradient=overhaul_gradient,
    name="margins",
    **DISTILL,
  ),
]
