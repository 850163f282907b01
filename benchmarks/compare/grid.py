"""What is compared with what: data sets, models with their search spaces, ablations, suites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recbole_llm.models.intent_tower import IntentTower
from recbole_llm.settings import Search
from recbole_llm.signals.als import ALSSignal
from recbole_llm.tuning.spaces import Parameter, Space, signal_space

OURS = "HybridFusion"


@dataclass(frozen=True)
class Peer:
    """A model of the comparison.

    Attributes:
        model: RecBole's name of it, or one of `externals.MODELS`.
        fixed: the settings that all its fits have.
        space: the settings that are searched; none: there is one fit.
        starts: the settings that are tried first, its authors' defaults.
        kind: `classic` (interactions alone), `text` (reads texts, too), or `ours`.
        is_slow: whether it gets few fits on large data.
        searches: the signals whose settings a run searches by itself (`signal_search_trials`).
        n_own: trainings of such a run beside those that it searches by.
        needs: the package that it comes from, where none of the project's has it.
    """

    model: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    space: Space = field(default_factory=dict)
    starts: Sequence[Mapping[str, Any]] = ()
    kind: str = "classic"
    is_slow: bool = False
    searches: Sequence[str] = ()
    n_own: int = 0
    needs: str | None = None


def _of(*values: Any) -> Parameter:
    return Parameter(str, Search(choices=values))


def _real(low: float, high: float) -> Parameter:
    return Parameter(float, Search(low, high, log=True))


def _whole(low: int, high: int) -> Parameter:
    return Parameter(int, Search(low, high, log=True))


_NO_SEARCH = {"signal_search_trials": 0}
# Factors up to what papers on well-tuned ALS recommend, above what our own runs try.
_ALS = {**signal_space(("als",), {}), "als_factors": _whole(32, 512)}
_LIGHTFM = signal_space(("lightfm",), {})
_LIGHTFM_START = {
    "lightfm_components": 64,
    "lightfm_epochs": 10,
    "lightfm_learning_rate": 0.05,
    "lightfm_loss": "warp",
}
_TOWER = {
    "intent_tower_dimensions": _whole(32, 256),
    "intent_tower_identity_dropout": Parameter(float, Search(0.0, 1.0)),
    "intent_tower_temperature": _real(0.05, 0.5),
    "intent_tower_popularity_exponent": Parameter(float, Search(0.0, 1.0)),
}
_TOWER_START = {
    "learning_rate": IntentTower.host_defaults["learning_rate"],
    **{key.name: key.default for key in IntentTower.setting_keys() if key.name in _TOWER},
}
_EASE = {"reg_weight": _real(1, 10000)}
_VAE = {"learning_rate": _real(1e-4, 5e-3), "dropout_prob": _of(0.5, 0.3, 0.7)}

#: The authors' defaults first, their recommended ranges around them (RecBole's
#: hyper-parameter pages, and the papers where these go further).
MODELS: dict[str, Peer] = {
    OURS: Peer(OURS, kind="ours", searches=("als", "slim"), n_own=3),
    "Pop": Peer("Pop"),
    "popularity": Peer(OURS, {"signals": "popularity"}),
    "ItemKNN": Peer(
        "ItemKNN",
        space={"k": _whole(5, 2000), "shrink": _of(0.0, 1.0, 10.0, 100.0)},
        starts=({"k": 100, "shrink": 0.0},),
    ),
    "EASE": Peer("EASE", space=_EASE, starts=({"reg_weight": 250.0},)),
    "EASE by users": Peer("EASEByUsers", space=_EASE, starts=({"reg_weight": 250.0},)),
    "SLIMElastic": Peer(
        "SLIMElastic",
        space={"alpha": _real(1e-4, 2.0), "l1_ratio": _real(1e-3, 0.5)},
        starts=({"alpha": 0.2, "l1_ratio": 0.02},),
    ),
    "ALS": Peer(
        "ALS",
        _NO_SEARCH,
        _ALS,
        [{f"als_{k}": v for k, v in start.items()} for start in ALSSignal.starts],
    ),
    "LightFM": Peer("LightFM", _NO_SEARCH, _LIGHTFM, (_LIGHTFM_START,)),
    "LightFM with features": Peer(
        "LightFM", {**_NO_SEARCH, "item_features": True}, _LIGHTFM, (_LIGHTFM_START,), kind="text"
    ),
    "BPR": Peer(
        "BPR",
        space={"learning_rate": _real(1e-4, 1e-2), "embedding_size": _of(64, 128, 256)},
        starts=({"learning_rate": 1e-3, "embedding_size": 64},),
    ),
    "LightGCN": Peer(
        "LightGCN",
        space={
            "learning_rate": _real(5e-4, 1e-2),
            "n_layers": _of(1, 2, 3, 4),
            "reg_weight": _real(1e-6, 1e-2),
        },
        starts=({"learning_rate": 1e-3, "n_layers": 2, "reg_weight": 1e-5},),
        is_slow=True,
    ),
    "MultiVAE": Peer(
        "MultiVAE",
        space={**_VAE, "latent_dimension": _of(64, 128, 200), "anneal_cap": _of(0.1, 0.2, 0.5)},
        starts=(
            {
                "learning_rate": 1e-3,
                "dropout_prob": 0.5,
                "latent_dimension": 128,
                "anneal_cap": 0.2,
            },
        ),
        is_slow=True,
    ),
    "RecVAE": Peer(
        "RecVAE",
        space={**_VAE, "latent_dimension": _of(64, 128, 200), "gamma": _real(0.0035, 0.02)},
        starts=(
            {"learning_rate": 1e-3, "dropout_prob": 0.5, "latent_dimension": 200, "gamma": 0.005},
        ),
        is_slow=True,
    ),
    "irspack iALS": Peer(
        "IrspackIALS",
        space={
            "n_components": _whole(4, 300),
            "alpha0": _real(3e-3, 1.0),
            "reg": _real(1e-4, 1e-1),
            "train_epochs": Parameter(int, Search(5, 30)),
        },
        starts=({"n_components": 64, "alpha0": 0.1, "reg": 1e-3, "train_epochs": 16},),
        needs="irspack",
    ),
    "irspack SLIM": Peer(
        "IrspackSLIM",
        space={"alpha": _real(1e-5, 1.0), "l1_ratio": _real(1e-3, 1.0)},
        starts=({"alpha": 0.05, "l1_ratio": 0.01},),
        needs="irspack",
    ),
    "RecTools ALS with features": Peer(
        "RecToolsALS",
        space={
            "factors": _whole(32, 512),
            "regularization": _real(0.01, 100.0),
            "alpha": _real(0.5, 50.0),
            "iterations": Parameter(int, Search(5, 30)),
        },
        starts=({"factors": 64, "regularization": 20.0, "alpha": 2.0, "iterations": 15},),
        kind="text",
        needs="rectools",
    ),
    "TextIntent": Peer(
        "TextIntent",
        space={"encoder": _of("bert,lexical", "bert", "lexical")},
        starts=tuple({"encoder": spec} for spec in ("bert,lexical", "bert", "lexical")),
        kind="ours",
    ),
    "IntentTower": Peer(
        "IntentTower",
        space={"learning_rate": _real(5e-4, 2e-2), **_TOWER},
        starts=(_TOWER_START,),
        kind="ours",
    ),
}

SIGNALS = ("als", "lightfm", "slim", "text_intent", "text_map", "popularity")


def _only(*signals: str, **others: Any) -> dict[str, Any]:
    return {"signals": ",".join(signals), **others}


#: What is changed of HybridFusion, whose signals keep the settings that it found.
ABLATIONS: dict[str, Mapping[str, Any]] = {
    "without text": _only("als", "lightfm", "slim", "popularity", completion=False),
    **{f"without {name}": _only(*(s for s in SIGNALS if s != name)) for name in SIGNALS},
    "the item-item ridge instead of SLIM": _only(
        *("item_item" if name == "slim" else name for name in SIGNALS)
    ),
    "BERT alone reads texts": {"encoder": "bert"},
    "words (TF-IDF) instead of BERT": {"encoder": "lexical"},
    "hashed words instead of BERT": {"encoder": "hashing"},
    "random vectors instead of texts": {"encoder": "noise"},
    # Of a copy of the data.
    "texts shuffled over items": {},
    "flat weights instead of the gate": {"fusion": "weighted_sum"},
    # With ALS and SLIM as they come, not as they were found.
    "no signal search": _NO_SEARCH,
    "untuned weights": {"weight_trials": 0},
}
SHUFFLED = "texts shuffled over items"
UNSEARCHED = "no signal search"

#: Data set -> settings that belong to the comparison. Repeats are removed before any split.
DATASETS: dict[str, Mapping[str, Any]] = {
    "ml-100k": {},
    "ml-latest-small-text": {},
    "amazon-scientific": {},
    "citeulike-a": {},
    "online-retail": {"rm_dup_inter": "first"},
}


def search_trials(entry: Peer, fits: int) -> int:
    """The settings that a run tries for each signal that it searches: all that it trains counts."""
    return max(0, fits - entry.n_own) // len(entry.searches)


#: They get three seeds and few fits of slow models.
LARGE = ("citeulike-a", "online-retail")
FEW_FITS = 5
SEEDS = (2020, 2021, 2022, 2023, 2024)


@dataclass(frozen=True)
class Protocol:
    """How the data are split, and what is looked at.

    Attributes:
        slice_name: whose NDCG@10 decides, of those that ours and peers report.
        cold: what `recbole-llm split` makes cold; "": RecBole splits.
        settings: of the split.
        chosen_by: slice by which a model's settings are chosen that knows nothing of cold items.
    """

    slice_name: str = "all"
    cold: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    chosen_by: str = "all"


LEAVE_ONE_OUT = {
    "split": {"LS": "valid_and_test"},
    "order": "TO",
    "group_by": "user",
    "mode": "full",
}
PROTOCOLS = {
    "random": Protocol(),
    "leave_one_out": Protocol(settings={"eval_args": LEAVE_ONE_OUT}),
    "cold_items": Protocol("cold", "items", chosen_by="warm"),
    "cold_users": Protocol("new_user", "users", chosen_by="new_user"),
}
#: These have no order of interactions.
UNORDERED = ("citeulike-a",)


@dataclass(frozen=True)
class Suite:
    """What is done where the options say nothing.

    Attributes:
        folder: of the results, below `benchmarks/results`.
        sizes: interactions of the cost curves.
    """

    folder: str
    datasets: tuple[str, ...]
    protocols: tuple[str, ...]
    models: tuple[str, ...]
    ablations: tuple[str, ...]
    n_seeds: int
    fits: int
    minutes: float
    sizes: tuple[int, ...]


SUITES = {
    "quick": Suite(
        "compare-quick",
        ("ml-100k", "amazon-scientific"),
        ("random",),
        (OURS, "Pop", "popularity", "ItemKNN", "EASE", "ALS", "LightFM", "TextIntent"),
        ("without text",),
        1,
        3,
        6.0,
        (100_000, 300_000),
    ),
    "full": Suite(
        "compare",
        tuple(DATASETS),
        tuple(PROTOCOLS),
        tuple(MODELS),
        tuple(ABLATIONS),
        5,
        20,
        20.0,
        (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000),
    ),
}
