"""What the steps of an epoch leave behind."""

from copy import deepcopy

import numpy as np
import pytest

from recbole_llm.settings import RunOptions
from recbole_llm.signals import SIGNALS
from recbole_llm.signals.base import with_settings
from recbole_llm.testing.signals import ENCODER, small_data
from recbole_llm.tower_training import TowerTraining


def training(batch_size=16, seed=3):
    data = small_data()
    signal = with_settings(SIGNALS["intent_tower"](), {"encoders": (ENCODER,), "dimensions": 8})
    tower = signal.tower(data, RunOptions(progress=False))
    made = TowerTraining(tower, learning_rate=0.02, batch_size=batch_size, seed=seed)
    users, items = tower.examples()
    steps = []

    def loss_of(rows):
        steps.append(learned(tower))
        return tower.loss(users[rows], items[rows])

    return made, items, loss_of, steps


def learned(tower):
    return np.concatenate([p.detach().numpy().ravel() for p in tower.parameters()])


def test_an_epoch_leaves_the_mean_of_its_steps():
    made, items, loss_of, steps = training(batch_size=-(-len(training()[1]) // 5))
    made.run_epoch(0, items, loss_of)
    with made.optimizer.mean.trained():
        steps.append(learned(made.tower))
    assert len(steps) == 6
    np.testing.assert_allclose(learned(made.tower), np.mean(steps[1:], axis=0), atol=1e-6)


def test_the_next_epoch_goes_on_from_the_last_step_and_the_older_fade():
    made, items, loss_of, steps = training(batch_size=-(-len(training()[1]) // 2))
    for number in range(4):
        made.run_epoch(number, items, loss_of)
    with made.optimizer.mean.trained():
        steps.append(learned(made.tower))
    expected = steps[1]
    for number, step in enumerate(steps[2:], 2):
        # Of two epochs with two steps each.
        expected = expected + (step - expected) / min(number, 4)
    np.testing.assert_allclose(learned(made.tower), expected, atol=1e-6)


def test_training_that_goes_on_elsewhere_ends_alike():
    made, items, loss_of, _ = training()
    made.run_epoch(0, items, loss_of)
    other, _, its_loss_of, _ = training()
    other.tower.load_state_dict(made.tower.state_dict())
    other.optimizer.load_state_dict(deepcopy(made.optimizer.state_dict()))
    made.run_epoch(1, items, loss_of)
    other.run_epoch(1, items, its_loss_of)
    np.testing.assert_array_equal(learned(made.tower), learned(other.tower))


def test_a_step_that_fails_leaves_the_mean_of_those_before():
    made, items, loss_of, steps = training(batch_size=-(-len(training()[1]) // 5))

    def fails(rows):
        if len(steps) == 2:
            raise RuntimeError("stopped")
        return loss_of(rows)

    with pytest.raises(RuntimeError, match="stopped"):
        made.run_epoch(0, items, fails)
    with made.optimizer.mean.trained():
        steps.append(learned(made.tower))
    assert (steps[1] != steps[2]).any()
    np.testing.assert_allclose(learned(made.tower), np.mean(steps[1:], axis=0), atol=1e-6)
