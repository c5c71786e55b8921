"""Weights that begin to learn later, against plain AdamW."""

import keras
import numpy as np
import pytest

from transforms.training.gradual_unfreezing import thawing_adamw
from transforms.training.head import LOGITS, Normalization, build_head, compile_head

RANDOM = np.random.default_rng(0)
VECTORS = RANDOM.normal(size=(24, 6)).astype(np.float32)
TARGETS = RANDOM.integers(3, size=24).astype(np.int32)


def head_of(seed=1):
    return build_head(6, 3, hidden_units=(5,), normalization=Normalization.NONE, seed=seed)


def fitted(steps, **settings):
    """Weights by layer after so many steps."""
    head = head_of()
    begin = {id(variable): 3 for variable in head.get_layer("hidden_1").trainable_variables}
    trained = compile_head(head, steps=10, learning_rate=0.1, first_steps=begin, **settings)
    for _ in range(steps):
        trained.train_on_batch(VECTORS, TARGETS)
    return {name: [np.array(array) for array in head.get_layer(name).get_weights()] for name in ("hidden_1", LOGITS)}


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_layer_is_unchanged_until_its_first_step(weight_decay):
    before, third, fourth = (fitted(steps, weight_decay=weight_decay) for steps in (0, 3, 4))
    for array, other in zip(before["hidden_1"], third["hidden_1"], strict=True):
        assert array.tobytes() == other.tobytes()
    assert not np.array_equal(third["hidden_1"][0], fourth["hidden_1"][0])
    assert not np.array_equal(before[LOGITS][0], third[LOGITS][0])


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_equals_adamw_when_all_layers_begin_at_once(weight_decay):
    results = []
    for make in (lambda: thawing_adamw(0.05, weight_decay, {}), lambda: keras.optimizers.AdamW(0.05, weight_decay)):
        head = head_of()
        optimizer = make()
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        head.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
        for _ in range(5):
            head.train_on_batch(VECTORS, TARGETS)
        results.append(head.get_weights())
    for array, other in zip(*results, strict=True):
        np.testing.assert_allclose(array, other, rtol=1e-5, atol=1e-6)
