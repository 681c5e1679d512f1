"""Cases of the losses between examples: `relations` and `contrastive`."""

import math

import numpy as np
from loss_cases import EXAMPLES, Case, normal

from kdjax import losses

JOINT = {"teachers": (1,), "joint": True}
DISTILL = {**JOINT, "equal": ((0, 1),)}


def vectors(features):
  return np.float64(features).reshape(len(features), -1)


def cosine(x, y):
  return x @ y / np.linalg.norm(x) / np.linalg.norm(y)


def huber(x):
  return 0.5 * x**2 if abs(x) <= 1 else abs(x) - 0.5


def others(x, *indices):
  return [i for i in range(len(x)) if i not in indices]


def rkd_distance_oracle(student, teacher):
  def psi(features):
    x = vectors(features)
    distances = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
    return distances / np.mean([distances[i, j] for i in others(x) for j in others(x, i)])

  s, t = psi(student), psi(teacher)
  return np.array([np.mean([huber(s[i, j] - t[i, j]) for j in others(s, i)]) for i in others(s)])


def rkd_angle_oracle(student, teacher):
  def psi(x, i, j, k):
    return cosine(x[i] - x[j], x[k] - x[j])

  s, t = vectors(student), vectors(teacher)
  return np.array(
    [
      np.mean(
        [huber(psi(s, i, j, k) - psi(t, i, j, k)) for i in others(s, j) for k in others(s, i, j)]
      )
      for j in others(s)
    ]
  )


def similarity_oracle(student, teacher):
  grams = [vectors(x) @ vectors(x).T for x in (student, teacher)]
  s, t = (g / np.linalg.norm(g, axis=1, keepdims=True) for g in grams)
  return ((s - t) ** 2).sum(-1) / len(s)


def congruence_oracle(student, teacher, sharpness=0.4, order=2):
  def kernel(x, y):
    c = cosine(x, y)
    series = sum((2 * sharpness * c) ** p / math.factorial(p) for p in range(order + 1))
    return np.exp(-2 * sharpness) * series

  s, t = ([[kernel(a, b) for b in vectors(x)] for a in vectors(x)] for x in (student, teacher))
  return ((np.array(s) - np.array(t)) ** 2).sum(-1) / len(s)


def transfer_oracle(student, teacher):
  def probabilities(features):
    x = vectors(features)
    k = np.array([[(cosine(a, b) + 1) / 2 for b in x] for a in x])
    return [{j: k[i, j] / sum(k[i, others(x, i)]) for j in others(x, i)} for i in others(x)]

  rows = zip(probabilities(student), probabilities(teacher), strict=True)
  return np.array([sum(t[j] * np.log(t[j] / s[j]) for j in t) for s, t in rows])


def cka_oracle(student, teacher):
  centred = (vectors(x) - vectors(x).mean(0) for x in (student, teacher))
  s, t = (x @ x.T / np.linalg.norm(x @ x.T) for x in centred)
  return ((s - t) ** 2).sum(-1) * len(s) / 2


def info_nce_oracle(student, teacher, temperature=0.07):
  s, t = vectors(student), vectors(teacher)
  alike = np.exp([[cosine(a, b) / temperature for b in t] for a in s])
  return -np.log(np.diag(alike) / alike.sum(-1))


def crd_make(rng):
  embeddings, memory = normal((5,))(rng)[0], rng.normal(scale=0.4, size=(20, 5))
  ids = np.stack([rng.permutation(20)[:4] for _ in range(EXAMPLES)])
  return embeddings, memory.astype(np.float32), ids


def crd_oracle(embeddings, memory, ids, temperature=0.07, normalizer=1.0):
  chance = (ids.shape[1] - 1) / len(memory)
  loss = []
  for s, rows in zip(vectors(embeddings), ids, strict=True):
    similar = memory[rows].astype(np.float64) @ s / np.linalg.norm(s)
    odds = np.exp(similar / temperature) / normalizer
    h = odds / (odds + chance)
    loss.append(-np.log(h[0]) - np.log(1 - h[1:]).sum())
  return np.array(loss)


CASES = [
  Case(losses.rkd_distance_loss, normal((3, 2), (4,)), rkd_distance_oracle, **DISTILL),
  Case(losses.rkd_angle_loss, normal((3, 2), (4,)), rkd_angle_oracle, **DISTILL),
  Case(losses.similarity_preserving_loss, normal((3, 2), (4,)), similarity_oracle, **DISTILL),
  Case(losses.correlation_congruence_loss, normal((3, 2), (4,)), congruence_oracle, **DISTILL),
  Case(
    losses.correlation_congruence_loss,
    normal((3, 2), (4,)),
    congruence_oracle,
    {"sharpness": 1.5, "order": 4},
    name="fourth-order",
    **DISTILL,
  ),
  Case(losses.probabilistic_transfer_loss, normal((3, 2), (4,)), transfer_oracle, **DISTILL),
  Case(losses.cka_loss, normal((3, 2), (4,)), cka_oracle, **DISTILL),
  Case(losses.info_nce_loss, normal((5,), (5,)), info_nce_oracle, {"temperature": 0.5}, **JOINT),
  Case(losses.crd_loss, crd_make, crd_oracle, {"temperature": 0.5}, teachers=(1,), shared=(1,)),
  Case(
    losses.crd_loss,
    crd_make,
    crd_oracle,
    {"temperature": 0.2, "normalizer": 30.0},
    teachers=(1,),
    shared=(1,),
    name="normalized",
  ),
]
