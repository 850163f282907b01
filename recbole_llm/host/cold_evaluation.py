"""The sliced metrics as metrics of RecBole, for every model that its trainers evaluate.

RecBole's trainers make a ``Collector``, which sees each batch of scores, and an ``Evaluator``,
which looks metrics up by name. So our collector stands in the place of RecBole's, and our metrics
in its tables; a trainer's ``evaluate`` tells the collector which part is evaluated.
"""

from __future__ import annotations

from functools import partial, wraps
from logging import getLogger
from typing import Any

import numpy as np
import recbole.evaluator.register as register
import recbole.trainer.trainer as trainer
from recbole.evaluator import Collector
from recbole.evaluator.base_metric import AbstractMetric
from recbole.utils import EvaluatorType

from recbole_llm.cold_metrics import Ranking, RankingCollector, side_by_side
from recbole_llm.errors import SettingsError
from recbole_llm.evaluation import METRIC_NAMES, Metric
from recbole_llm.factors import Index
from recbole_llm.slices import SLICES

# RecBole's name -> slice and metric.
_SLICED = {f"{part}_{metric}": (part, metric) for part in SLICES for metric in METRIC_NAMES}
_COUNTED = ("coverage", "cold_count")
_RANKING = "cold_evaluation.ranking"


def register_metrics() -> None:
    """Make the metrics and the collector known to RecBole; a second call changes nothing."""
    made = {name: partial(SlicedMetric, *of) for name, of in _SLICED.items()}
    made |= {name: partial(CountedMetric, name) for name in _COUNTED}
    for name, metric in made.items():
        register.metrics_dict[name] = metric
        register.metric_types[name] = EvaluatorType.RANKING
        register.metric_information[name] = []
    if trainer.Collector is not ColdCollector:
        trainer.Collector = ColdCollector
        trainer.Trainer.evaluate = _knowing_the_part(trainer.Trainer.evaluate)
        trainer.calculate_valid_score = _explaining(trainer.calculate_valid_score)


def apply_cold_eval(config: Any) -> None:
    """Check what a Config says of ``cold_eval``, and add the metrics that it asks for.

    A second call changes nothing.

    Raises:
        SettingsError: it cannot be done as set, or a metric is named that needs it.
    """
    wanted = config["cold_eval"]
    if wanted is not None and not isinstance(wanted, bool):
        raise SettingsError(f"`cold_eval` must be true or false, got {wanted!r}")
    names = [name.lower() for name in config["metrics"]]
    objective, _, cutoff = config["valid_metric"].lower().partition("@")
    ours = _SLICED.keys() | _COUNTED
    if not wanted:
        for name in [*names, objective]:
            if name in ours:
                raise SettingsError(f"the metric `{name}` needs `cold_eval: true`")
        return
    modes = set(config["eval_args"]["mode"].values())
    if modes != {"full"}:
        raise SettingsError(
            f"`cold_eval` needs full ranking, but the mode in `eval_args` is "
            f"{', '.join(sorted(modes - {'full'}))}; set `mode: full`, or `cold_eval: false`"
        )
    if not config["single_spec"]:
        raise SettingsError("`cold_eval` is for one process; leave out `nproc`")
    sliced = [name for name, (_, metric) in _SLICED.items() if metric in names]
    added = [name for name in (*sliced, *_COUNTED) if name not in names]
    config["metrics"] = [*config["metrics"], *added]
    if objective in ours - {*names, *added}:
        raise SettingsError(
            f"`valid_metric` is {config['valid_metric']}, but `metrics` has no "
            f"{_SLICED[objective][1]}; add it"
        )
    if objective in ours and cutoff not in map(str, config["topk"]):
        raise SettingsError(
            f"`valid_metric` is {config['valid_metric']}, but `topk` is {config['topk']}; add its "
            "cut-off"
        )


class ColdCollector(Collector):
    """RecBole's collector, which with ``cold_eval`` also collects the sliced rankings.

    Attributes:
        users: slice -> number of users in the part that was evaluated last.
    """

    def __init__(self, config: Any) -> None:
        # The trainer makes its evaluator after this, of the same list of metrics.
        apply_cold_eval(config)
        super().__init__(config)
        self.users: dict[str, int] = {}
        self._counts: tuple[Index, Index] | None = None
        self._rankings: RankingCollector | None = None

    def data_collect(self, train_data: Any) -> None:
        """As RecBole's, with how often each user and item occurs in the training part."""
        super().data_collect(train_data)
        if self.config["cold_eval"]:
            self._counts = training_counts(train_data._dataset)

    def start(self, eval_data: Any) -> None:
        """Begin the evaluation of a part, whose cold items are candidates."""
        if not self.config["cold_eval"]:
            return
        if self._counts is None:
            raise SettingsError(
                "`cold_eval` compares with the training part; call "
                "trainer.eval_collector.data_collect(train_data) before trainer.evaluate"
            )
        users, items = self._counts
        dataset = eval_data._dataset
        self._rankings = RankingCollector(
            users,
            items > 0,
            dataset.inter_feat[dataset.iid_field].numpy(),
            k=max(self.topk),
            seed=self.config["seed"],
            device=self.device,
        )
        n_cold = int((items[1:] == 0).sum())
        getLogger().debug(
            f"cold_eval: {n_cold:,} of {len(items) - 1:,} items have no training interaction, "
            f"{len(self._rankings.cold_items):,} of them occur in the evaluated part"
        )

    def eval_batch_collect(
        self, scores_tensor: Any, interaction: Any, positive_u: Any, positive_i: Any
    ) -> None:
        """As RecBole's, and the rankings of the batch."""
        super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)
        if self._rankings is not None:
            users = interaction[self.config["USER_ID_FIELD"]]
            self._rankings.add(scores_tensor, users, positive_u, positive_i)

    def get_data_struct(self) -> Any:
        """As RecBole's, with a :class:`~recbole_llm.cold_metrics.Ranking`."""
        collected = super().get_data_struct()
        if self._rankings is not None:
            ranking = self._rankings.ranking()
            self._rankings = None
            self.users = {name: int(ranking.users(name).sum()) for name in SLICES}
            collected.set(_RANKING, ranking)
        return collected


def training_counts(dataset: Any) -> tuple[Index, Index]:
    """The training interactions of each user and each item, int64 (n_users,) and (n_items,).

    A sequential data set has a row for each item that follows another one: what stood before a
    user's first row is added, and an item that occurs in such lists alone is counted there.
    """
    rows = dataset.inter_feat
    users = rows[dataset.uid_field].numpy()
    user_counts = np.bincount(users, minlength=dataset.user_num).astype(np.int64)
    items = rows[dataset.iid_field].numpy()
    list_field = getattr(dataset, f"{dataset.iid_field}_list_field", None)
    if list_field in rows:
        before = np.full(dataset.user_num, np.iinfo(np.int64).max)
        np.minimum.at(before, users, rows[dataset.item_list_length_field].numpy())
        user_counts += np.where(user_counts > 0, before, 0)
        items = np.concatenate([items, rows[list_field].numpy().ravel()])
    item_counts = np.bincount(items, minlength=dataset.item_num).astype(np.int64)
    item_counts[0] = 0
    return user_counts, item_counts


class _RankingMetric(AbstractMetric):
    """A metric of a :class:`~recbole_llm.cold_metrics.Ranking`."""

    name: str

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.topk = config["topk"]

    def calculate_metric(self, dataobject: Any) -> dict[str, float]:
        """``name@k`` -> value for each cut-off; nothing where no user is in the slice."""
        ranking: Ranking = dataobject.get(_RANKING)
        values = {k: self.value(ranking, k) for k in self.topk}
        return {
            f"{self.name}@{k}": round(value, self.decimal_place)
            for k, value in values.items()
            if value is not None
        }

    def value(self, ranking: Ranking, k: int) -> float | None:
        """The metric at a cut-off; None where it is not defined."""
        raise NotImplementedError


class SlicedMetric(_RankingMetric):
    """The mean of a top-k metric over the users of a slice."""

    def __init__(self, slice_name: str, metric: str, config: Any) -> None:
        super().__init__(config)
        self.name = f"{slice_name}_{metric}"
        self.slice_name = slice_name
        self.metric = metric

    def value(self, ranking: Ranking, k: int) -> float | None:
        """As in the base class."""
        values = ranking.per_user(self.slice_name, Metric(self.metric, k))
        return float(values.mean()) if len(values) else None


class CountedMetric(_RankingMetric):
    """What the users' lists hold, whatever the users wanted."""

    def __init__(self, name: str, config: Any) -> None:
        super().__init__(config)
        self.name = name

    def value(self, ranking: Ranking, k: int) -> float | None:
        """As in the base class."""
        return float(getattr(ranking, self.name)(k))


def _knowing_the_part(evaluate: Any) -> Any:
    """``Trainer.evaluate`` that tells the collector which part it evaluates."""

    @wraps(evaluate)
    def evaluate_part(self: Any, eval_data: Any, *args: Any, **kwargs: Any) -> Any:
        if not eval_data or not self.config["cold_eval"]:
            return evaluate(self, eval_data, *args, **kwargs)
        self.eval_collector.start(eval_data)
        result = evaluate(self, eval_data, *args, **kwargs)
        # Validation comes with every epoch, and RecBole logs it in its own way.
        if eval_data._sampler.phase == "test":
            for k in self.config["topk"]:
                names = (name.lower() for name in self.config["metrics"])
                metrics = [name for name in names if f"all_{name}@{k}" in result]
                for line in side_by_side(result, self.eval_collector.users, metrics, k):
                    getLogger().info(line)
        return result

    return evaluate_part


def _explaining(calculate_valid_score: Any) -> Any:
    """``calculate_valid_score`` with a reason where a slice has no user."""

    @wraps(calculate_valid_score)
    def calculate(valid_result: Any, valid_metric: str | None = None) -> Any:
        name = (valid_metric or "").partition("@")[0]
        if name in _SLICED and valid_metric not in valid_result:
            raise SettingsError(
                f"`valid_metric` is {valid_metric}, but the validation part has no user for it; "
                "choose another one"
            )
        return calculate_valid_score(valid_result, valid_metric)

    return calculate
