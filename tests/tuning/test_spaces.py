"""Search spaces: collected, printed, read again, and refused."""

import math

import pytest
import yaml

from recbole_llm.errors import SettingsError
from recbole_llm.settings import Search
from recbole_llm.signals import SIGNALS
from recbole_llm.tuning.spaces import (
    Parameter,
    changed,
    describe,
    nested,
    read_space,
    signal_space,
    weight_space,
)


def written(folder, text, name="space.yaml"):
    file = folder / name
    file.write_text(text)
    return file


def test_every_searched_field_of_the_signals_in_use_is_in_the_space():
    space = signal_space(None, {"signals": "als,lightfm", "als_alpha": 3})
    assert {"als_factors", "als_iterations", "lightfm_loss", "encoder"} <= set(space)
    assert "als_alpha" not in space  # the user has set it
    assert "item_item_regularization" not in space
    assert {part.group for part in space.values()} == {"text", "als", "lightfm"}


def test_what_the_towers_loss_does_not_read_is_not_searched():
    of_rankings = signal_space(None, {"signals": "intent_tower"})
    of_ratings = signal_space(None, {"signals": "intent_tower", "loss": "mse"})
    assert set(of_rankings) - set(of_ratings) == {
        "intent_tower_temperature",
        "intent_tower_popularity_exponent",
    }
    assert set(of_ratings) - set(of_rankings) == {"intent_tower_regularization"}


def test_a_new_signals_fields_join_by_themselves(monkeypatch):
    class Other(SIGNALS["als"]):
        pass

    monkeypatch.setitem(SIGNALS, "other", Other)
    assert "other_factors" in signal_space(None, {"signals": "other"})


def test_what_is_printed_can_be_read_again(tmp_path):
    space = {**signal_space(None, {}), **weight_space(["als", "text_map:bert"], ["als"])}
    again = read_space(written(tmp_path, describe(space)))
    assert {name: part.distribution for name, part in again.items()} == {
        name: part.distribution for name, part in space.items()
    }


def test_recboles_own_syntax_is_read(tmp_path):
    lines = (
        "learning_rate loguniform -8,0\nembedding_size choice [64,96]\n"
        "dropout uniform 0,1\nn_layers quniform 1,5,2\nmlp choice ['[64,64]','[8]']\n"
    )
    space = read_space(written(tmp_path, lines, "hyper.test"))
    assert space["learning_rate"].where == Search(math.exp(-8), 1.0, log=True)
    assert space["embedding_size"].where.choices == (64, 96)
    assert space["dropout"] == Parameter(float, Search(0.0, 1.0))
    assert space["n_layers"] == Parameter(int, Search(1, 5, step=2))
    assert space["mlp"].where.choices == ("[64,64]", "[8]")


def test_a_file_changes_adds_and_takes_out(tmp_path):
    file = written(
        tmp_path, "als_factors: {low: 8, high: 16}\nals_alpha: none\nitem_item_rank: [0, 64]\n"
    )
    own = signal_space(None, {"signals": "als,item_item"})
    space = changed(own, read_space(file), {"item_item_rank"}, file)
    assert space["als_factors"].bounds == (8, 16)
    assert space["als_factors"].group == "als"
    assert "als_alpha" not in space
    assert space["item_item_rank"].bounds == (0, 64)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: {low: 3, high: 3}", "range of `a` is empty"),
        ("a: {low: 5, high: 3}", "range of `a` is inverted"),
        ("a: {low: 0, high: 3, log: true}", "low must be above 0"),
        ("a: {low: 1, high: x}", "high must be a number"),
        ("a: {low: 1, hihg: 3}", "must look like"),
        ("a: []", "has no choices"),
        ("a: {choices: []}", "has no choices"),
        ("", "has no parameter"),
        ("a: [", "is no YAML"),
        ("a uniform 3,1", "is inverted"),
        ("a quniform 3,9", "takes 3 numbers"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, text, reason):
    with pytest.raises(SettingsError, match=reason):
        read_space(written(tmp_path, text))


def test_an_unknown_parameter_is_named_with_its_neighbour(tmp_path):
    file = written(tmp_path, "als_factor: {low: 8, high: 16}")
    with pytest.raises(SettingsError, match="did you mean `als_factors`"):
        changed(signal_space(None, {}), read_space(file), set(), file)


def test_dotted_names_are_entries_of_a_mapping():
    values = {"fusion_weights.text_map:bert": 0.5, "als_factors": 8}
    assert nested(values) == {"fusion_weights": {"text_map:bert": 0.5}, "als_factors": 8}
    assert yaml.safe_load(yaml.safe_dump(nested(values))) == nested(values)
