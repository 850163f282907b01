"""What a size costs, in a process of its own: seconds and peak memory of each phase.

python -m benchmarks.compare.cost_fit --dataset=… --data_path=… --result_file=…
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from implicit.cpu.als import AlternatingLeastSquares
from recbole.utils import get_model, init_logger, init_seed

from benchmarks.compare.measure import n_bytes, peak_memory_mb
from recbole_llm.cli import parse_arguments
from recbole_llm.factors import Factors
from recbole_llm.fitting import FitReport
from recbole_llm.host.config import prepare
from recbole_llm.host.run import load_parts, read_config
from recbole_llm.item_form import ItemForm
from recbole_llm.newcomers import Newcomers
from recbole_llm.saved_tables import SavedTables
from recbole_llm.serving import Recommender
from recbole_llm.training_data import entries

N_SAMPLE = 10_000
K = 10
DIMENSIONS = (64, 256)
# Rounds of which the best counts: others run on the machine, too.
_ROUNDS = 3


class Phases:
    """Seconds and peak memory by phase; nested ones count for themselves alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_mb: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure a block."""
        forget_peak()
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start
            self.peak_mb[name] = max(self.peak_mb.get(name, 0.0), peak_memory_mb())

    def watch_fits(self) -> None:
        """Make the phases of a fit known here."""
        timed: Callable[..., Any] = FitReport.timed

        @contextmanager
        def measured(report: FitReport, name: str) -> Iterator[None]:
            with self.phase(name), timed(report, name):
                yield

        FitReport.timed = measured  # type: ignore[method-assign, assignment]


def forget_peak() -> None:
    """Linux: the peak of memory starts anew. Elsewhere it only grows."""
    file = Path("/proc/self/clear_refs")
    if file.exists():
        file.write_text("5")


def ranking_seconds(model: Any, train: Any, seed: int) -> tuple[float, int]:
    """Seconds to rank for a fixed sample of users, seen items left out, and their number."""
    data = train.training_matrix()
    rng = np.random.default_rng(seed)
    n_users = min(N_SAMPLE, data.shape[0] - 1)
    users = rng.choice(np.arange(1, data.shape[0]), n_users, replace=False)
    step = max(1, (1 << 26) // data.shape[1])
    start = perf_counter()
    for begin in range(0, n_users, step):
        part = users[begin : begin + step]
        scores = model.scorer.scores(torch.from_numpy(part))
        scores[tuple(map(torch.from_numpy, entries(data[part])))] = -np.inf
        torch.topk(scores, K, dim=1)
    return perf_counter() - start, n_users


def against_implicit(train: Any, seed: int) -> list[dict[str, float]]:
    """Users a second of `recommend`, ours and implicit's, by the same tables in one run."""
    known = train.training_matrix().tocsr().astype(np.float32)
    rng = np.random.default_rng(seed)
    n_users = known.shape[0]
    asked = rng.choice(np.arange(1, n_users), min(N_SAMPLE, n_users - 1), replace=False)
    return [
        {"dimensions": dims, "users": len(asked), **_rates(known, asked, dims, seed)}
        for dims in DIMENSIONS
    ]


def _rates(known: Any, asked: np.ndarray, dims: int, seed: int) -> dict[str, float]:
    """Users a second of both, the better of some rounds in turn."""
    rng = np.random.default_rng(seed)
    users, items = (rng.standard_normal((size, dims)).astype(np.float32) for size in known.shape)
    ours = _ours(users, items, known, seed)
    theirs = AlternatingLeastSquares(dims, num_threads=torch.get_num_threads())
    theirs.user_factors, theirs.item_factors = users, items
    names, seen = asked.astype(str).tolist(), known[asked]
    work: dict[str, Callable[[], object]] = {
        "ours": lambda: ours.recommend(names, k=K),
        "implicit": lambda: theirs.recommend(asked, seen, N=K, filter_already_liked_items=True),
    }
    spent = [{name: _seconds(call) for name, call in work.items()} for _ in range(_ROUNDS)]
    return {name: len(asked) / min(round_[name] for round_ in spent) for name in work}


def _ours(users: np.ndarray, items: np.ndarray, known: Any, seed: int) -> Recommender:
    everyone, everything = (tuple(map(str, range(size))) for size in known.shape)
    block = Factors.of(users, items.copy(), np.ones(len(items), dtype=bool))
    tables = SavedTables(
        blocks=(block,),
        user_ids=everyone,
        item_ids=everything,
        item_titles=("",) * len(everything),
        item_texts=(),
        item_form=ItemForm("item_id"),
        known=known,
        age=None,
        newcomers=Newcomers((), 0.0, {}),
        facts={"seed": seed},
    )
    return Recommender(tables, device="cpu")


def _seconds(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


def main() -> None:
    values: dict[str, Any] = parse_arguments(sys.argv[1:])
    file = Path(values.pop("result_file"))
    scoring = values.pop("scoring") == "True"
    phases = Phases()
    phases.watch_fits()
    base = peak_memory_mb()
    start = perf_counter()
    with phases.phase("load"):
        config = read_config(values.pop("model"), values.pop("dataset"), [], values)
        init_seed(config["seed"], config["reproducibility"])
        init_logger(config)
        prepare(config)
        train, valid, test = load_parts(config)
    model = get_model(config["model"])(config, train._dataset)
    with phases.phase("prepare"):
        # The phases of the fit come in between: this one is what they leave.
        model.fit(train._dataset, valid._dataset)
    inner = sum(phases.seconds.get(name, 0.0) for name in ("encode", "signals", "tune"))
    phases.seconds["prepare"] -= inner
    total = perf_counter() - start
    dataset = train._dataset
    seconds, n_asked = ranking_seconds(model, dataset, config["seed"])
    record = {
        "seconds": phases.seconds,
        "peak_mb": phases.peak_mb,
        "total_seconds": total,
        "base_mb": base,
        "n_interactions": len(dataset) + len(valid._dataset) + len(test._dataset),
        "n_train": len(dataset),
        "n_users": dataset.user_num - 1,
        "n_items": dataset.item_num - 1,
        "texts": model.report.texts,
        "signals": list(model.report.signals),
        "ndcg": model.report.fused,
        "table_bytes": n_bytes(list(model.blocks)),
        "ranking": {"seconds": seconds, "users": n_asked},
        "scoring": against_implicit(dataset, config["seed"]) if scoring else [],
    }
    file.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
