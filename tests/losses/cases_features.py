"""Cases of `kdjax.losses.features`."""

from loss_cases import Case, mse_gradient, mse_oracle, normal

from kdjax import losses

CASES = [
  Case(
    losses.hint_loss,
    normal((3, 8), (3, 8)),
    mse_oracle,
    teachers=(1,),
    equal=((0, 1),),
    gradient=mse_gradient,
  ),
]
