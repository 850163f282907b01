"""Defaults exist once: the YAML files and the README repeat them for the reader."""

from pathlib import Path

import pytest
import yaml

from recbole_llm.model_settings import model_keys, read_model_settings
from recbole_llm.models import MODELS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", MODELS)
def test_the_yaml_gives_the_defaults_and_nothing_else(name):
    names = MODELS[name].signal_names
    given = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    assert list(given) == [key.name for key in model_keys(names)]
    stated, default = read_model_settings(names, given), read_model_settings(names, {})
    assert (stated.signals, stated.text, stated.history) == (
        default.signals,
        default.text,
        default.history,
    )
    assert (stated.search, stated.fusion) == (default.search, default.fusion)


def test_the_readme_lists_every_setting():
    readme = (ROOT / "README.md").read_text()
    assert not [key.name for key in model_keys(None) if f"| `{key.name}` |" not in readme]
