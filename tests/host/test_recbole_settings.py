"""RecBole's own settings are checked before its code takes them as they are."""

import pytest
import yaml

from recbole_llm.errors import SettingsError
from recbole_llm.host.known_keys import properties_folder
from recbole_llm.host.recbole_settings import Numbers
from recbole_llm.host.run import read_config
from recbole_llm.settings import section_keys


def config_of(**values):
    return read_config("BPR", "ml-100k", [], values)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": -3}, "`epochs` must be at least 0, got -3"),
        ({"epochs": "many"}, "`epochs` must be a number, got 'many'"),
        ({"seed": 1.5}, "`seed` must be a whole number, got 1.5"),
        ({"learning_rate": 0}, "`learning_rate` must be above 0.0"),
        ({"train_batch_size": 0}, "`train_batch_size` must be at least 1"),
        ({"stopping_step": None}, "`stopping_step` must be a number, got None"),
        ({"MAX_ITEM_LIST_LENGTH": 0}, "`MAX_ITEM_LIST_LENGTH` must be at least 1"),
        ({"load_col": ["user_id"]}, "`load_col` must look like {inter: [user_id, item_id]}"),
        ({"val_interval": 3}, "`val_interval` must look like {rating: "),
        ({"checkpoint_dir": ""}, "`checkpoint_dir` is empty"),
        ({"eval_args": {"splt": {"RS": [8, 1, 1]}}}, "no `splt`; did you mean `split`?"),
        ({"eval_args": {"split": "RS"}}, "`split` must look like {RS: [8, 1, 1]}, got 'RS'"),
        ({"eval_args": {"split": {"RS": [0.8, 0.2]}}}, "`split: {RS: [0.8, 0.2]}` must have three"),
    ],
)
def test_a_value_that_recbole_cannot_use_is_named(given, message):
    with pytest.raises(SettingsError) as error:
        config_of(**given)
    assert message in str(error.value)


def test_a_number_that_is_written_as_a_word_is_taken_as_a_number():
    config = config_of(epochs="7", learning_rate="0.01")
    assert (config["epochs"], config["learning_rate"]) == (7, 0.01)


def test_what_is_not_given_stays_as_recbole_has_it():
    config = config_of()
    assert config["train_batch_size"] == 2048
    overall = yaml.safe_load((properties_folder() / "overall.yaml").read_text())
    overall |= yaml.safe_load((properties_folder() / "dataset" / "sample.yaml").read_text())
    assert {key.name: key.default for key in section_keys("recbole", Numbers)} == {
        key.name: overall[key.name] for key in section_keys("recbole", Numbers)
    }
