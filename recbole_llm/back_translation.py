"""Texts there and back by two seq2seq models of transformers, each text once.

Translations are kept in a folder of the embedding cache, named by the models: JSON files that
appear whole or not at all and are never changed, so that any number of processes can share it and
a killed one loses the piece at hand.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_llm.encoders.bert import model_digest, quiet
from recbole_llm.errors import DataWarning, SettingsError, one_line
from recbole_llm.settings import RunOptions
from recbole_llm.whole_file import whole_file

# Texts of one file: what a kill can cost.
_PIECE = 512
# Tokens: of most models' longest input; and what a translation may be longer by.
_LONGEST = 512
_ROOM = 16
_RECIPE = f"translation 1: greedy, {_LONGEST} tokens, twice the input and {_ROOM}"


def model_folders(translator: Mapping[str, str]) -> tuple[Path, Path]:
    """The folders of the models to another language and back.

    Raises:
        SettingsError: one does not exist.
    """
    folders = tuple(Path(translator[way]).expanduser() for way in ("to", "back"))
    for way, folder in zip(("to", "back"), folders, strict=True):
        if not folder.is_dir():
            raise SettingsError(
                f"`translator`: the folder {folder} of `{way}` does not exist; give the one that "
                "`save_pretrained` wrote"
            )
    return folders[0], folders[1]


def back_translated(
    texts: Sequence[str],
    models: tuple[Path, Path],
    cache: Path | None,
    run: RunOptions,
    batch_size: int,
) -> dict[str, str]:
    """What texts become in another language and back.

    Args:
        texts: distinct, not blank.
        models: folders, there and back.
        cache: the embedding cache's folder; None keeps nothing.
        run: device and progress.
        batch_size: texts that are translated at once.

    Returns:
        Text -> its translation, without those that came back empty.

    Raises:
        SettingsError: the cache cannot be written.
        Exception: whatever the models raise.
    """
    folder = None if cache is None else cache / "translations" / _fingerprint(models)
    known = {} if folder is None else _read(folder)
    # Alike lengths go together: else a batch is mostly padding.
    missing = sorted((text for text in texts if text not in known), key=len)
    if missing:
        there, back = (_Translator(model, run.device, batch_size) for model in models)
        for piece in _pieces(missing, run.progress):
            found = dict(zip(piece, back(there(piece)), strict=True))
            if folder is not None:
                _write(folder, found)
            known |= found
    return {text: known[text] for text in texts if known[text].strip()}


class _Translator:
    """One model, read anew from its folder."""

    def __init__(self, folder: Path, device: str, batch_size: int) -> None:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        self.batch_size = batch_size
        with quiet():
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder, local_files_only=True)
        self.model = model.to(device).eval()
        self.longest = min(self.tokenizer.model_max_length, _LONGEST)

    def __call__(self, texts: Sequence[str]) -> list[str]:
        found: list[str] = []
        for start in range(0, len(texts), self.batch_size):
            tokens = self.tokenizer(
                list(texts[start : start + self.batch_size]),
                padding=True,
                truncation=True,
                max_length=self.longest,
                return_tensors="pt",
                return_token_type_ids=False,
            ).to(self.model.device)
            # Greedy, whatever the folder says: equal runs have equal texts.
            most = min(2 * tokens["input_ids"].shape[1] + _ROOM, self.longest)
            made = self.model.generate(**tokens, do_sample=False, num_beams=1, max_new_tokens=most)
            found += self.tokenizer.batch_decode(made, skip_special_tokens=True)
        return found


def _pieces(texts: Sequence[str], progress: bool) -> Any:
    from tqdm import tqdm

    pieces = [texts[start : start + _PIECE] for start in range(0, len(texts), _PIECE)]
    return tqdm(pieces, desc=f"Translating, {_PIECE} texts each", disable=not progress)


def _fingerprint(models: tuple[Path, Path]) -> str:
    digests = "\n".join(model_digest(model, _RECIPE) for model in models)
    return hashlib.sha256(digests.encode()).hexdigest()[:32]


def _read(folder: Path) -> dict[str, str]:
    known: dict[str, str] = {}
    for file in sorted(folder.glob("*.json")):
        try:
            known |= json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, TypeError) as error:
            warnings.warn(f"{file} is damaged ({one_line(error)}); translated anew", DataWarning)
            file.unlink(missing_ok=True)
    return known


def _write(folder: Path, found: Mapping[str, str]) -> None:
    content = json.dumps(found).encode()
    target = folder / f"{hashlib.sha256(content).hexdigest()[:32]}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(target) as unfinished:
            unfinished.write_bytes(content)
    except OSError as error:
        raise SettingsError(
            f"`embedding_cache`: cannot write {target} ({error.strerror or error}); name another "
            "folder, or `none` for no cache"
        ) from error
