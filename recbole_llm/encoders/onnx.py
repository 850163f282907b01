"""A network's transformer by ONNX Runtime on the CPU, its weights as they are or as int8.

It is exported once to the cache's folder, in the layout of sentence-transformers' own ONNX back
end (``onnx/model.onnx``). That back end itself needs `optimum`, no release of which goes with
transformers 5; so torch writes the file, and ONNX Runtime quantises and runs it.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from recbole_llm.atomic_files import new_folder
from recbole_llm.encoders.base import EncoderOptions, NetworkOptions, transformer_slot
from recbole_llm.errors import SettingsError, one_line

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

# Which rows come out of given weights: whoever changes the export changes this.
_RECIPE = {"none": "; onnx 1", "int8": "; onnx 1, int8 dynamic, by channel, text by text"}
_FILE = Path("onnx") / "model.onnx"
_ROWS = "last_hidden_state"


def check(options: NetworkOptions) -> None:
    """Says what is missing before anything slow begins.

    Raises:
        SettingsError: the extra is not installed, or int8 has nothing to run it.
    """
    if options.backend == "torch":
        if options.quantize != "none":
            raise SettingsError(
                f"`encoder_quantize: {options.quantize}` needs `encoder_backend: onnx`"
            )
        return
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise SettingsError(
                f"`encoder_backend: onnx` needs `{package}`; run `pip install recbole_llm[onnx]`"
            )


def recipe(options: NetworkOptions) -> str:
    """What tells its rows from torch's."""
    return _RECIPE[options.quantize] if options.backend == "onnx" else ""


def onto_onnx(
    network: SentenceTransformer, name: str, fingerprint: str, options: EncoderOptions
) -> SentenceTransformer:
    """The network with its transformer run by ONNX Runtime; pooling and the rest stay torch's.

    Args:
        network: on the CPU; it is changed.
        name: the encoder's, for messages.
        fingerprint: the encoder's, which names the exported file's folder.
        options: the encoder's.

    Raises:
        SettingsError: it is no transformer, cannot be exported, or the folder cannot be written.
    """
    slot = transformer_slot(network)
    if slot is None:
        raise SettingsError(
            f"`encoder_backend: onnx` runs transformers, and `{name}` is a "
            f"{type(network[0]).__name__}; use `encoder_backend: torch`"
        )
    with ExitStack() as stack:
        if options.cache is None:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory())) / fingerprint[:32]
        else:
            place = options.cache / "onnx" / fingerprint[:32]
        if not (place / _FILE).is_file():
            try:
                with new_folder(place, overwrite=True) as filling:
                    _export(network, slot, filling / _FILE, options.network.quantize)
            except OSError as error:
                raise SettingsError(
                    f"`embedding_cache`: cannot write to the folder {place} "
                    f"({error.strerror or error}); name another folder, or `none` for no cache"
                ) from error
            # torch's exporters and ONNX's checker raise what they like.
            except Exception as error:
                raise SettingsError(
                    f"`encoder_backend: onnx`: `{name}` cannot be exported ({one_line(error)}); "
                    "use `encoder_backend: torch`"
                ) from error
            logger.info(f"encoder {name}: exported to {place}")
        kind = _ByText if options.network.quantize == "int8" else _OnnxTransformer
        network[0]._modules[slot] = kind(network[0]._modules[slot].config, place / _FILE)
    return network


class _OnnxTransformer(nn.Module):
    """What sentence-transformers calls in a transformer's place.

    Args:
        config: the transformer's.
        file: the exported transformer, which is read at once.
        threads: how many work on a batch together.
    """

    def __init__(self, config: Any, file: Path, threads: int | None = None) -> None:
        super().__init__()
        import onnxruntime

        self.config = config
        chosen = onnxruntime.SessionOptions()
        chosen.intra_op_num_threads = threads or torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(
            file.read_bytes(), chosen, providers=["CPUExecutionProvider"]
        )
        self.inputs = [tensor.name for tensor in self.session.get_inputs()]

    def forward(self, **features: Any) -> dict[str, torch.Tensor]:
        """The tokens' rows, float32 (n, tokens, d), under the transformer's own name of them."""
        return {_ROWS: self._run(features)}

    def _run(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        given = {name: features[name].cpu().numpy() for name in self.inputs}
        (rows,) = self.session.run([_ROWS], given)
        return torch.from_numpy(rows)


class _ByText(_OnnxTransformer):
    """One text in a step of int8, whose scales are those of all that a step sees.

    So a text's row is its own, and nothing is spent on padding. Each thread has a text: two make
    of a short one hardly more than one does.
    """

    def __init__(self, config: Any, file: Path) -> None:
        super().__init__(config, file, threads=1)
        self.threads = ThreadPoolExecutor(torch.get_num_threads())

    def forward(self, **features: Any) -> dict[str, torch.Tensor]:
        """As for whole batches; zeros for padding."""
        is_text = features["attention_mask"].bool()
        texts = [
            {name: features[name][number, own][None] for name in self.inputs}
            for number, own in enumerate(is_text)
        ]
        found = torch.cat([rows[0] for rows in self.threads.map(self._run, texts)])
        rows = torch.zeros((*is_text.shape, found.shape[1]))
        rows[is_text] = found
        return {_ROWS: rows}


class _Rows(nn.Module):
    """A transformer as a function of tensors, which is what torch exports."""

    def __init__(self, transformer: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.transformer, self.names = transformer, names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        given = dict(zip(self.names, tensors, strict=True))
        return self.transformer(**given, return_dict=True)[_ROWS]


def _export(network: SentenceTransformer, slot: str, file: Path, quantize: str) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Two texts of two lengths: torch takes a size of 1 for fixed.
    texts = ["a text of some words", "a text"]
    found = network.tokenizer(texts, padding=True, return_tensors="pt")
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in found]
    plain = network[0]._modules[slot].eval()
    plain.config.use_cache = False  # of a causal model: it would come out beside the rows
    transformer = _Rows(plain, names)
    file.parent.mkdir()
    axes = {name: {0: "texts", 1: "tokens"} for name in (*names, _ROWS)}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a trace fixes what Python decides
        torch.onnx.export(
            transformer,
            tuple(found[name] for name in names),
            str(file),
            input_names=names,
            output_names=[_ROWS],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    if quantize == "int8":
        # Weights by channel: by tensor (the cosine to torch's rows is .95) they cost more accuracy.
        whole = file.rename(file.with_name("whole.onnx"))
        quantize_dynamic(whole, file, per_channel=True, weight_type=QuantType.QInt8)
        whole.unlink()
