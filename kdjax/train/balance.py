"""Weights of terms that adapt while they are learned: by uncertainty, and by gradient norms."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from kdjax.reduce import Mean, safe_divide
from kdjax.train.objective import Term, mean_of
from kdjax.tree import leaves_with_path, map_with_path
from kdjax.types import Array, Params, Select

LEAST = 1e-3  # Of a weight: none is ever lost.


def by_uncertainty(terms: Sequence[Term]) -> list[Term]:
  r"""Terms that learn their own weights.

  $$L = \sum_k w_k (e^{-s_k} L_k + s_k)$$

  with $s_k$ learned from 0, the log of the noise that term k is taken to have: its best value is
  $\log L_k$, so that terms of any scale come to matter alike. `w_k` stays the term's `weight`.

  Args:
    terms: of an objective; losses must not be negative.

  Returns:
    Terms of the same names, whose params are `log_variance` float32 `[]` and `own`, what the term
    learned before. `<name>_alone` is logged: the loss itself.

  Example:
    >>> import jax
    >>> term = Term("mse", lambda student, teacher, batch: jnp.float32(3.0))
    >>> (weighed,) = by_uncertainty([term])
    >>> params = weighed.init(jax.random.key(0), None, None)
    >>> float(weighed.loss(params, None, None, None)[0].compute())
    3.0

  Reference:
    A. Kendall, Y. Gal, R. Cipolla, Multi-Task Learning Using Uncertainty to Weigh Losses for Scene
    Geometry and Semantics, CVPR 2018, arXiv:1705.07115 (with the factors of 1/2 left to `weight`).
  """
  return [_uncertain(term) for term in terms]


def _uncertain(term: Term) -> Term:
  def init(key: Array, student: Any, teacher: Any) -> Params:
    own = {} if term.init is None else {"own": term.init(key, student, teacher)}
    return {"log_variance": jnp.zeros([]), **own}

  def with_own(fn: Any) -> Any:
    def of_all(*args: Any) -> Any:
      *memory, params, student, teacher, batch = args
      own = () if term.init is None else (params["own"],)
      return fn(*memory, *own, student, teacher, batch)

    return of_all

  def loss(*args: Any) -> tuple[Mean, dict[str, Mean]]:
    mean, logged = mean_of(with_own(term.loss)(*args))
    noise = args[-4]["log_variance"]
    weighed = Mean(jnp.exp(-noise) * mean.total + noise * mean.count, mean.count)
    return weighed, {**logged, f"{term.name}_alone": mean}

  memory = term.memory
  if memory is not None:
    memory = memory._replace(change=with_own(memory.change))
  return term._replace(loss=loss, init=init, memory=memory)


class Balance(NamedTuple):
  r"""How `make_train_step(..., balance=...)` adapts the weights of terms: GradNorm.

  With $n_k = \Vert \nabla_W L_k \Vert$, the gradient of term k with respect to shared parameters W,
  and $r_k$ its loss as a share of its first, divided by the mean of these shares, factors $w_k$ of
  the terms' weights go down the gradient of $\sum_k |w_k n_k - \bar{G} r_k^\alpha|$,
  $\bar{G}$ the mean of $w_k n_k$ held fixed, and are scaled to a mean of 1: terms pull alike, those
  that have learned less a little more. Norms are divided by their mean, so that `rate` is free of
  the scale of the losses.

  Attributes:
    select: W, `(path, leaf) -> bool` over the student's params. The later in the network, the
      cheaper: each term costs a backward pass down to them.
    alpha: at least 0; 0 for equal norms.
    rate: of the descent, in (0, 1).

  Reference:
    Z. Chen et al., GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask
    Networks, ICML 2018, arXiv:1711.02257.
  """

  select: Select = lambda path, leaf: True
  alpha: float = 1.5
  rate: float = 0.025


def init_balance(names: Sequence[str]) -> Params:
  """What a balance remembers before the first step: `factors`, all 1, and `first` losses."""
  return {name: {"factor": jnp.ones([]), "first": jnp.zeros([])} for name in names}


def rebalance(
  balance: Balance, memory: Params, losses: dict[str, Array], norms: dict[str, Array]
) -> Params:
  """The memory after a step.

  Args:
    balance: how.
    memory: as from `init_balance`.
    losses: float32 `[]` a term, at least 0; a term's first that is not 0 is remembered.
    norms: float32 `[]` a term, n_k.

  Returns:
    The memory; factors are positive, and their mean is 1.

  Example:
    >>> ones = {"a": jnp.float32(1), "b": jnp.float32(1)}
    >>> norms = {"a": jnp.float32(1), "b": jnp.float32(3)}
    >>> new = rebalance(Balance(alpha=0.0, rate=0.1), init_balance(ones), ones, norms)
    >>> round(float(new["a"]["factor"]), 3), round(float(new["b"]["factor"]), 3)
    (1.105, 0.895)
  """
  names = list(memory)
  stack = lambda of: jnp.stack([of[name] for name in names])  # noqa: E731
  loss, norm = stack(losses), stack(norms)
  factor, first = (jnp.stack([memory[n][part] for n in names]) for part in ("factor", "first"))
  first = jnp.where(first == 0, loss, first)
  share = jnp.where(first == 0, 1.0, safe_divide(loss, first))
  pull = factor * norm
  wanted = jnp.mean(pull) * safe_divide(share, jnp.mean(share)) ** balance.alpha
  slope = jnp.sign(pull - wanted) * safe_divide(norm, jnp.mean(norm))
  factor = jnp.maximum(factor - balance.rate * slope, LEAST)
  factor = factor / jnp.mean(factor)
  return {n: {"factor": factor[i], "first": first[i]} for i, n in enumerate(names)}


def shared_leaves(balance: Balance, params: Params) -> dict[str, Array]:
  """The chosen leaves by path.

  Raises:
    ValueError: if none is chosen.
  """
  chosen = {
    "/".join(path): leaf for path, leaf in leaves_with_path(params) if balance.select(path, leaf)
  }
  if not chosen:
    raise ValueError("balance: select chooses no leaf of the student")
  return chosen


def with_leaves(params: Params, shared: dict[str, Array]) -> Params:
  """The params with those leaves in their places."""
  return map_with_path(lambda path, leaf: shared.get("/".join(path), leaf), params)
