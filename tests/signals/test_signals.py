"""Every registered signal keeps the contract."""

import dataclasses

import numpy as np
import pytest

from recbole_llm.settings import RunOptions
from recbole_llm.signals import SIGNALS, SkippedSignal, register
from recbole_llm.signals.item_item import ItemItemSignal, ridge_item_item
from recbole_llm.testing.signals import check_order_does_not_matter, check_signal, small_data

RUN = RunOptions(progress=False)


@pytest.mark.parametrize("name", SIGNALS)
def test_signal_keeps_the_contract(name):
    check_signal(name, SIGNALS[name]())


@pytest.mark.parametrize("name", SIGNALS)
def test_the_order_of_users_and_items_does_not_matter(name):
    check_order_does_not_matter(name, SIGNALS[name]())


def test_lightfm_with_features_keeps_the_contract_and_knows_a_cold_item():
    signal = dataclasses.replace(SIGNALS["lightfm"](), item_features=True)
    check_signal("lightfm", signal)
    assert signal.fit(small_data(), RUN).known[-1]


def test_item_item_equals_its_formula():
    data = small_data()
    x = data.binary.toarray().astype(np.float64)
    inverse = np.linalg.inv(x.T @ x + 3.0 * np.eye(x.shape[1]))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(
        ridge_item_item(data.binary, regularization=3.0), expected, atol=1e-5
    )


def test_item_item_of_nearly_full_rank_scores_as_the_full_one():
    data, users = small_data(), np.arange(40)
    full = ItemItemSignal(regularization=3.0).fit(data, RUN).scores(users)
    truncated = ItemItemSignal(regularization=3.0, rank=28).fit(data, RUN).scores(users)
    np.testing.assert_allclose(truncated, full, atol=0.02)


def test_item_item_past_its_memory_is_left_out_by_name():
    with pytest.raises(SkippedSignal, match="item_item_memory_gb"):
        ItemItemSignal(memory_gb=1e-9).fit(small_data(), RUN)


def test_als_user_rows_follow_a_permutation_of_the_users():
    data = small_data()
    order = np.r_[0, np.random.default_rng(1).permutation(np.arange(1, 40))]
    permuted = dataclasses.replace(data, interactions=data.interactions[order])
    rows, moved = SIGNALS["als"]().fit(data, RUN), SIGNALS["als"]().fit(permuted, RUN)
    np.testing.assert_allclose(moved.users, rows.users[order], atol=1e-4)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="als"):
        register("als", SIGNALS["als"])
