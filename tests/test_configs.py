"""Defaults exist once: the YAML files and the README repeat them for the reader."""

from pathlib import Path

import pytest
import yaml
from recbole.utils import ModelType

from recbole_llm.model_settings import model_keys, read_model_settings, tower_keys
from recbole_llm.models import MODELS
from recbole_llm.sequence_network import SequenceShape
from recbole_llm.settings import TextSettings, read_section

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", MODELS)
def test_the_yaml_gives_the_defaults_and_nothing_else(name):
    given = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    assert list(given) == [key.name for key in MODELS[name].setting_keys()]
    if MODELS[name].type == ModelType.SEQUENTIAL:
        assert read_section(TextSettings, given) == TextSettings()
        assert read_section(SequenceShape, given, prefix="sequence_") == SequenceShape()
        return
    names = MODELS[name].signal_names
    stated, default = read_model_settings(names, given), read_model_settings(names, {})
    assert (stated.signals, stated.text, stated.history) == (
        default.signals,
        default.text,
        default.history,
    )
    assert (stated.search, stated.fusion) == (default.search, default.fusion)


def test_the_readme_lists_every_setting():
    readme = (ROOT / "README.md").read_text()
    keys = {key.name for key in (*model_keys(None), *tower_keys())}
    assert not [name for name in keys if f"| `{name}` |" not in readme]
