"""There and back by tiny models that are made here."""

import json

import pytest
import torch

from recbole_llm.back_translation import back_translated, model_folders
from recbole_llm.errors import DataWarning, SettingsError
from recbole_llm.settings import RunOptions

RUN = RunOptions(progress=False)
TEXTS = ["red coat", "steel knife", "a warm red coat and lamp", "lamp"]


def by_hand(folder, text):
    """One text alone, as transformers' own documentation has it."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    ids = torch.tensor([tokenizer(text, truncation=True, max_length=16)["input_ids"]])
    made = model.generate(ids, do_sample=False, num_beams=1, max_new_tokens=16)
    return tokenizer.decode(made[0], skip_special_tokens=True)


def test_batches_are_translated_as_each_text_alone(translators):
    found = back_translated(TEXTS, translators, None, RUN, batch_size=3)
    alone = {text: by_hand(translators[1], by_hand(translators[0], text)) for text in TEXTS}
    assert found == {text: said for text, said in alone.items() if said}
    assert len(set(found.values())) > 1


def test_a_second_run_translates_new_texts_alone(translators, tmp_path, monkeypatch):
    first = back_translated(TEXTS[:2], translators, tmp_path, RUN, 3)
    from transformers import BartForConditionalGeneration

    lawful, asked = BartForConditionalGeneration.generate, []

    def generate(model, **tokens):
        asked.append(len(tokens["input_ids"]))
        return lawful(model, **tokens)

    monkeypatch.setattr(BartForConditionalGeneration, "generate", generate)
    assert back_translated(TEXTS[:2], translators, tmp_path, RUN, 3) == first
    assert not asked
    every = back_translated(TEXTS, translators, tmp_path, RUN, 3)
    assert sum(asked) == 2 * 2
    assert every == back_translated(TEXTS, translators, None, RUN, 3)


def test_other_models_have_translations_of_their_own(translators, tmp_path):
    back_translated(TEXTS, translators, tmp_path, RUN, 3)
    back_translated(TEXTS, translators[::-1], tmp_path, RUN, 3)
    assert len(list(tmp_path.glob("translations/*"))) == 2


def test_a_damaged_file_is_translated_anew(translators, tmp_path):
    first = back_translated(TEXTS, translators, tmp_path, RUN, 3)
    (file,) = tmp_path.rglob("*.json")
    whole = file.read_text()
    file.write_text(whole[:-5])
    with pytest.warns(DataWarning, match="damaged"):
        assert back_translated(TEXTS, translators, tmp_path, RUN, 3) == first
    assert json.loads(file.read_text()) == json.loads(whole)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"`translator`: the folder .*gone of `back` does not"):
        model_folders({"to": str(tmp_path), "back": str(tmp_path / "gone")})
