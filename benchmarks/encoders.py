"""Texts a second by torch, ONNX Runtime and int8, and what each does to TextIntent's NDCG@10.

python benchmarks/encoders.py --data_path DATA --datasets ml-100k-text amazon-scientific
Writes benchmarks/results/encoders.md. The bundled MiniLM; NDCG@10 on the validation part. The
texts are a sample of the items', longest to shortest as the embedding cache gives them; rounds go
through all back ends in turn, and the median round counts.
"""

import argparse
import statistics
import tempfile
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import command
import torch

from recbole_llm.embedding_cache import encode_cached
from recbole_llm.encoders import EncoderOptions, NetworkOptions, build
from recbole_llm.host.config import prepare
from recbole_llm.host.run import load_parts, read_config
from recbole_llm.model_settings import read_model_settings

RESULTS = Path(__file__).parent / "results" / "encoders.md"
# Way -> back end, weights, batch size; in a batch int8 takes texts one by one.
WAYS = {
    "torch": ("torch", "none", 64),
    "torch, batches of 1": ("torch", "none", 1),
    "onnx": ("onnx", "none", 64),
    "onnx, batches of 1": ("onnx", "none", 1),
    "onnx, int8": ("onnx", "int8", 64),
}


def item_texts(dataset, data_path):
    """Distinct texts of the items, as TextIntent encodes them."""
    config = read_config("TextIntent", dataset, [], {"data_path": data_path})
    prepare(config)
    train, _, _ = load_parts(config)
    data, _ = train._dataset.training_data(read_model_settings(("text_intent",), {}))
    return sorted({text for text in data.item_texts if text.strip()})


def rates(texts, rounds, cache):
    """Way -> texts a second, one for each round."""
    encoders = {
        way: build(
            "bert",
            EncoderOptions("cpu", size, False, NetworkOptions("auto", "auto", *network), cache),
        )
        for way, (*network, size) in WAYS.items()
    }
    found = {way: [] for way in WAYS}
    for encoder in encoders.values():
        encoder.encode(texts[:1])  # what is loaded or exported once is no part of it
    for _ in range(rounds):
        for way, encoder in encoders.items():
            start = perf_counter()
            encode_cached(encoder, texts, None)
            found[way].append(len(texts) / (perf_counter() - start))
    return found


def ndcg(dataset, data_path, way, cache):
    """TextIntent's NDCG@10 on the validation part."""
    backend, quantize, size = WAYS[way]
    with tempfile.TemporaryDirectory() as folder:
        record = command.run(
            {
                **{"model": "TextIntent", "dataset": dataset, "data_path": data_path},
                **{"encoder": "bert", "encoder_backend": backend, "encoder_quantize": quantize},
                **{"embedding_cache": cache, "encoder_batch_size": size},
            },
            Path(folder),
        )
    return record["valid"]["ndcg@10"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", required=True)
    parser.add_argument("--datasets", nargs="+", default=["ml-100k-text", "amazon-scientific"])
    parser.add_argument("--texts", type=int, default=1000, help="timed texts of each data set")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    data_path = str(Path(args.data_path).absolute())
    lines = [
        "# Back ends of an encoder",
        "",
        f"The bundled MiniLM, {torch.get_num_threads()} threads, torch {version('torch')}, "
        f"onnxruntime {version('onnxruntime')}; NDCG@10 of TextIntent with `encoder: bert` on the "
        f"validation part, seed 2020. Median of {args.rounds} rounds over {args.texts:,} texts.",
        "",
        "| data set | words a text | back end | texts a second | × torch | NDCG@10 | of torch's |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for dataset in args.datasets:
            texts = item_texts(dataset, data_path)
            texts = texts[:: max(1, len(texts) // args.texts)][: args.texts]
            words = statistics.mean(len(text.split()) for text in texts)
            speed = rates(texts, args.rounds, Path(folder))
            speed = {way: statistics.median(found) for way, found in speed.items()}
            # The size of a batch is no part of what the rows are.
            found = {}
            for way, (backend, quantize, _) in WAYS.items():
                if (backend, quantize) not in found:
                    found[backend, quantize] = ndcg(dataset, data_path, way, folder)
            value = {way: found[network[:2]] for way, network in WAYS.items()}
            for way in WAYS:
                lines.append(
                    f"| {dataset} | {words:.0f} | {way} | {speed[way]:,.0f} | "
                    f"{speed[way] / speed['torch']:.2f} | {value[way]:.4f} | "
                    f"{value[way] / value['torch']:.1%} |"
                )
                print(lines[-1], flush=True)
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
