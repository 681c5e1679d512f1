"""Losses whose gradients come out of the sweep that computes them, or out of a second one."""

import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from kdjax.losses.blocks import Gradients
from kdjax.types import Array, FactoredLogits


class Swept(NamedTuple):
  """What a sweep over a catalogue finds.

  Attributes:
    values: float32 `[T]`, the loss of each token.
    parts: a tree of `[T]`, what it is made of, for the log; no gradient flows through it.
    known: a tree of `[T, ...]`, what a second sweep need not find again.
    grads: of the weighted sum of the values, or None.
    d_given: of the same by the float arrays that were given beside the student, or None.
  """

  values: Array
  parts: Any
  known: Any
  grads: Gradients | None = None
  d_given: Any = None


class Sweep(Protocol):
  """`sweep(student, given, weight, known, *, with_grads)`; `known` may be None."""

  def __call__(
    self, student: FactoredLogits, given: Any, weight: Array, known: Any, *, with_grads: bool
  ) -> Swept: ...


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def weighted_loss(sweep: Sweep, student: FactoredLogits, given: Any, weight: Array):
  """Sum of `weight * loss` over tokens, and of each of its parts; gradients in the same sweep."""
  return _weigh(sweep(student, given, weight, None, with_grads=False), weight)


def _weighted_forward(sweep, student, given, weight):
  found = sweep(student, given, weight, None, with_grads=True)
  return _weigh(found, weight), (found.grads.like(student), found.d_given)


def _weighted_backward(sweep, saved, cotangents):
  del sweep
  grads, d_given = jax.tree.map(lambda g: (g * cotangents[0]).astype(g.dtype), saved)
  return grads, d_given, None


weighted_loss.defvjp(_weighted_forward, _weighted_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def each_loss(sweep: Sweep, student: FactoredLogits, given: Any):
  """The loss of each token and its parts, for weights that are known only on the way back."""
  found = sweep(student, given, _ones(student), None, with_grads=False)
  return found.values, found.parts


def _each_forward(sweep, student, given):
  found = sweep(student, given, _ones(student), None, with_grads=False)
  return (found.values, found.parts), (student, given, found.known)


def _each_backward(sweep, saved, cotangents):
  student, given, known = saved
  found = sweep(student, given, cotangents[0], known, with_grads=True)
  return found.grads.like(student), found.d_given


each_loss.defvjp(_each_forward, _each_backward)


def _ones(student: FactoredLogits) -> Array:
  return jnp.ones(student.query.shape[:1], jnp.float32)


def _weigh(found: Swept, weight: Array) -> tuple[Array, Any]:
  total = lambda x: jnp.sum(jnp.where(weight == 0, 0.0, x * weight))  # noqa: E731
  return total(found.values), jax.tree.map(total, found.parts)
