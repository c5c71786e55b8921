"""AdamW with layer-wise unfreezing, without recompiling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras


def thawing_adamw(learning_rate: Any, weight_decay: float, first_steps: Mapping[int, int]) -> keras.optimizers.AdamW:
    """AdamW that leaves each variable as it is, to the last bit, until its first step.

    Gradients of all variables are computed from the beginning, so that moments are known when a variable begins, and
    the state of a run that was killed is of one form whenever it was. It costs the time that freezing would save.

    Args:
        learning_rate: number or schedule.
        weight_decay: as AdamW's.
        first_steps: `id` of a variable -> step with which it begins, from 0; others begin with step 0.
    """
    import keras
    from keras import ops

    class ThawingAdamW(keras.optimizers.AdamW):  # type: ignore[misc]
        def build(self, variables: Any) -> None:
            self._first_steps = [first_steps.get(id(variable), 0) for variable in variables]
            super().build(variables)

        def update_step(self, gradient: Any, variable: Any, rate: Any) -> None:
            first = self._first_steps[self._get_variable_index(variable)]
            rate = rate * ops.cast(self.iterations >= first, "float32")
            if self._use_weight_decay(variable):
                self.assign_sub(variable, ops.cast(variable * weight_decay * rate, variable.dtype))
            super().update_step(gradient, variable, rate)

        def _apply_weight_decay(self, variables: Any) -> None:
            """Nothing: `update_step` does it, variable by variable."""

    return ThawingAdamW(learning_rate, weight_decay=weight_decay)
