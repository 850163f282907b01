"""``recbole-llm tune``: a study of a model's settings, ours or RecBole's."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from optuna.trial import FrozenTrial, TrialState
from recbole.evaluator import smaller_metrics
from recbole.utils import ModelType, init_logger, init_seed
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from recbole_llm.errors import SettingsError, did_you_mean
from recbole_llm.evaluation import Metric
from recbole_llm.host.config import given_settings, prepare, task_of
from recbole_llm.host.known_keys import recbole_keys
from recbole_llm.host.run import check_model, load_parts, make_folder, read_config, run
from recbole_llm.levels import COSTS, LEVELS, Bench, SignalsLevel, WeightsLevel, within
from recbole_llm.model_settings import model_keys, read_model_settings
from recbole_llm.settings import RunOptions, Search
from recbole_llm.text import read_feature_table, text_fields
from recbole_llm.tuning.objectives import (
    Objective,
    Pick,
    StudyOptions,
    choose,
    complete_trials,
    first_failure,
)
from recbole_llm.tuning.report import summary, write_report
from recbole_llm.tuning.samplers import PRUNERS, SAMPLERS, make_sampler
from recbole_llm.tuning.spaces import (
    Parameter,
    Space,
    changed,
    describe,
    key_space,
    nested,
    read_space,
    signal_space,
    weight_space,
)
from recbole_llm.tuning.study import Outcome, Watch, open_study, run_study, space_facts
from recbole_llm.whole_file import whole_file

logger = logging.getLogger("recbole_llm.tuning")

# Standard errors on both sides of a 95 % interval.
_SURE = 1.96
# They change no trial's value.
_NOT_IDENTITY = frozenset(
    {
        *("model", "dataset", "data_path", "config_files", "result_file", "checkpoint_dir"),
        *("show_progress", "state", "device", "gpu_id", "use_gpu", "worker", "log_wandb"),
        *("wandb_project", "embedding_cache", "encoder_batch_size", "signal_cache", "saved"),
    }
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options; all else is a setting of the model's."""
    parser.add_argument("--model", required=True, help="HybridFusion, or any other model")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--trials", type=int, default=100, help="in all, earlier ones included")
    parser.add_argument(
        "--level",
        choices=LEVELS,
        help="weights: of the fusion, over cached tables; signals: their own settings; all: both",
    )
    parser.add_argument(
        "--storage", help="sqlite:///studies.db, journal:FILE or any Optuna URL; default: a journal"
    )
    parser.add_argument("--study", help="its name; default: MODEL-DATASET-LEVEL")
    parser.add_argument("--out", type=Path, help="folder of what comes out; default: tuning/STUDY")
    parser.add_argument("--space", type=Path, help="YAML of ranges, or RecBole's hyper.test")
    parser.add_argument("--show_space", action="store_true", help="print the space and end")
    parser.add_argument(
        "--objective",
        action="append",
        help="a metric such as ndcg@10 or cold_ndcg@10, encode_seconds or index_dims; may be "
        "given again; default: valid_metric",
    )
    parser.add_argument(
        "--pick",
        help='which trial is put in force: best, or of a front "ndcg@10 >= 0.995*best"; default: '
        "the best, where it is ahead of the run without a study by more than chance",
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes on this machine")
    parser.add_argument("--timeout", type=float, help="seconds after which no trial starts")
    parser.add_argument("--sampler", choices=SAMPLERS, default="tpe")
    parser.add_argument("--pruner", choices=PRUNERS, default="median")
    parser.add_argument("--search_seed", type=int, help="of the proposals; default: the seed")
    parser.add_argument(
        "--report_test", action="store_true", help="keep test metrics with the trials"
    )
    # One of the processes of --jobs: it runs trials and reports nothing.
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)


def tune(args: argparse.Namespace) -> int:
    """Runs ``recbole-llm tune``.

    Args:
        args: what :func:`add_arguments`'s parser made, with ``settings``: the model's, and
            ``arguments``: the command line.

    Returns:
        The exit code: 130 where Ctrl-C ended it.

    Raises:
        SettingsError: an option or a setting is not allowed, or every trial has failed.
        DataError: the data cannot be used.
    """
    for name in ("trials", "jobs"):
        if getattr(args, name) < 1:
            raise SettingsError(f"`{name}` must be at least 1, got {getattr(args, name)}")
    if args.timeout is not None and args.timeout <= 0:
        raise SettingsError(f"`timeout` must be above 0, got {args.timeout:g}")
    task = _Task.of(args)
    if args.show_space:
        print(describe(task.space))  # noqa: T201 - what was asked for
        return 0
    make_sampler(args.sampler, 0, 0)
    if args.sampler == "cmaes" and len(task.objectives) > 1:
        raise SettingsError("`sampler`: cmaes is for one objective; use tpe, gp, random or qmc")
    make_folder("out", task.folder)
    study = open_study(task.options, task.identity())
    if args.threads:
        return _work(task, study, args.threads, [])
    with _helpers(args) as helpers:
        return _work(task, study, _threads(args.jobs) if helpers else None, helpers)


def _threads(jobs: int) -> int:
    return max(1, (os.cpu_count() or 1) // jobs)


@contextmanager
def _helpers(args: argparse.Namespace) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The other processes of ``--jobs``: the same command on the same storage."""
    threads = _threads(args.jobs)
    code = "import sys; from recbole_llm.cli import recbole_llm_command as c; sys.exit(c())"
    helpers = [
        subprocess.Popen(
            [sys.executable, "-c", code, *args.arguments, f"--threads={threads}"],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdout=subprocess.DEVNULL,
        )
        for _ in range(args.jobs - 1)
    ]
    try:
        yield helpers
    finally:
        for helper in helpers:
            if helper.poll() is None:
                helper.send_signal(signal.SIGINT)
                helper.wait()


@dataclasses.dataclass(frozen=True, eq=False)
class _Task:
    """What the command line asks for, with RecBole's Config."""

    args: argparse.Namespace
    config: Any
    files: list[str]
    values: dict[str, Any]
    given: dict[str, Any]
    level: str | None
    objectives: tuple[Objective, ...]
    space: dict[str, Parameter]
    changes: dict[str, Parameter | None]
    pick: Pick | None

    @classmethod
    def of(cls, args: argparse.Namespace) -> _Task:
        """Read and check all that can be before the data are loaded."""
        check_model(args.model)
        values: dict[str, Any] = dict(args.settings)
        files = values.pop("config_files", "").split()
        config = read_config(args.model, args.dataset, files, values)
        init_seed(config["seed"], config["reproducibility"])
        init_logger(config)
        prepare(config)
        if _is_ours(config.model_class) and task_of(config).is_valued:
            raise SettingsError(
                f"{task_of(config).setting}: a study tunes rankings; leave one of the two out"
            )
        given = {
            key: value
            for key, value in given_settings(config).items()
            if key not in ("model", "dataset", "config_files")
        }
        changes = read_space(args.space) if args.space else {}
        both = sorted(set(changes) & set(given))
        if both:
            raise SettingsError(f"{args.space}: `{both[0]}` is set already; leave out one of them")
        objectives = _objectives(args.objective, config)
        level, space = _level_and_space(args, config, given, changes)
        if not space:
            raise SettingsError(
                f"`space`: nothing of {args.model} is searched; name a file of ranges with --space"
            )
        picks = args.pick not in (None, "best")
        pick = Pick.parse(args.pick, objectives) if picks else None
        return cls(args, config, files, values, given, level, objectives, space, changes, pick)

    @property
    def is_ours(self) -> bool:
        """Whether the model is fitted as tables of signals; any other is trained in each trial."""
        return _is_ours(self.config.model_class)

    @property
    def name(self) -> str:
        """Of the study."""
        parts = (self.args.model, self.args.dataset, self.level or "")
        return self.args.study or "-".join(part for part in parts if part)

    @property
    def folder(self) -> Path:
        """Where what comes out goes."""
        return self.args.out or Path("tuning") / self.name

    @property
    def options(self) -> StudyOptions:
        """Of the study."""
        args = self.args
        seed = self.config["seed"] if args.search_seed is None else args.search_seed
        return StudyOptions(
            name=self.name,
            storage=args.storage or f"journal:{self.folder / 'journal.log'}",
            objectives=self.objectives,
            trials=args.trials,
            timeout=args.timeout,
            sampler=args.sampler,
            pruner=args.pruner,
            seed=seed,
        )

    def identity(self) -> dict[str, Any]:
        """What a trial's value depends on beside the trial's own values."""
        settings = {k: v for k, v in sorted(self.given.items()) if k not in _NOT_IDENTITY}
        return {
            "model": self.args.model,
            "dataset": f"{self.args.dataset} {_fingerprint(self.config)}",
            "level": self.level,
            "settings": json.loads(json.dumps(settings, default=str)),
            "space": space_facts(self.space),
        }


def _is_ours(model_class: Any) -> bool:
    return hasattr(model_class, "signal_names") and model_class.type == ModelType.TRADITIONAL


def _fingerprint(config: Any) -> str:
    """16 hex digits of the data set's files."""
    digest = hashlib.sha256()
    folder = Path(config["data_path"])
    for file in sorted(folder.glob(f"{config['dataset']}.*")):
        if file.suffix not in (".yaml", ".md") and file.is_file():
            digest.update(file.name.encode())
            with file.open("rb") as content:
                while block := content.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()[:16]


def _objectives(given: Sequence[str] | None, config: Any) -> tuple[Objective, ...]:
    ours = _is_ours(config.model_class)
    names = [name.strip().lower() for name in given or [config["valid_metric"]]]
    if len(set(names)) < len(names):
        raise SettingsError(f"`objective`: {', '.join(names)}: one is named twice")
    reported = {f"{m.lower()}@{k}" for m in config["metrics"] for k in config["topk"]}
    reported |= {name.lower() for name in config["metrics"]}
    found = []
    for name in names:
        if ours and name in COSTS:
            found.append(Objective(name, maximise=False))
        elif ours:
            try:
                found.append(Objective(str(Metric.parse(name))))
            except SettingsError as error:
                reason = str(error).replace("`valid_metric`", "`objective`")
                raise SettingsError(f"{reason}; costs are {', '.join(COSTS)}") from None
        elif name in reported:
            found.append(Objective(name, name.partition("@")[0] not in smaller_metrics))
        else:
            raise SettingsError(
                f"`objective`: {config['model']} reports no {name}, but "
                f"{', '.join(sorted(reported))}; see `metrics` and `topk`"
                + did_you_mean(name, reported)
            )
    if ours and all(objective.name in COSTS for objective in found):
        raise SettingsError("`objective` names costs alone; name a metric beside them")
    return tuple(found)


def _level_and_space(
    args: argparse.Namespace,
    config: Any,
    given: Mapping[str, Any],
    changes: Mapping[str, Parameter | None],
) -> tuple[str | None, dict[str, Parameter]]:
    if not _is_ours(config.model_class):
        if args.level:
            raise SettingsError(f"`level` is for models made of signals; {args.model} has one")
        known: Collection[str] = recbole_keys(config.model_class)
        space: dict[str, Parameter] = {}
        if hasattr(config.model_class, "setting_keys"):
            known = {*known, *(key.name for key in config.model_class.setting_keys())}
        if hasattr(config.model_class, "searched_keys"):
            # A run trains all anew: no group of parameters is cheaper to change by itself.
            space = {
                name: dataclasses.replace(part, group="")
                for name, part in key_space(config.model_class.searched_keys(given)).items()
            }
        return None, changed(space, changes, known, args.space)
    names = config.model_class.signal_names
    settings = read_model_settings(names, given)
    labels = list(settings.variants(is_later=True))
    level = args.level or ("weights" if len(labels) > 1 else "signals")
    if level == "weights":
        if settings.fusion.fusion_weights is not None:
            raise SettingsError("`fusion_weights` is set, and level weights tunes it; leave it out")
        space = weight_space(labels)
        # Whether cold items get weights of their own is known when the data are.
        known = {*weight_space(labels, labels)}
    else:
        space = signal_space(names, given)
        if settings.uses_embeddings and "item_text_fields" not in given:
            space |= _text_field_space(config)
        known = {key.name for key in model_keys(names) if key.section != "search"}
    space = changed(space, changes, known, args.space)
    for name, parameter in space.items():
        for value in parameter.bounds:
            try:
                read_model_settings(names, {**given, **nested({name: value})})
            except SettingsError as error:
                if args.space is None:
                    raise
                raise SettingsError(f"{args.space}: {error}") from error
    return level, space


def _text_field_space(config: Any) -> dict[str, Parameter]:
    """All text-like fields of the items together, or one of them alone."""
    file = Path(config["data_path"]) / f"{config['dataset']}.item"
    if not file.is_file():
        return {}
    table = read_feature_table(
        file,
        id_field=config["ITEM_ID_FIELD"],
        field_separator=config["field_separator"],
        encoding=config["encoding"] or "utf-8",
    )
    fields = text_fields(table)
    if len(fields) < 2:
        return {}
    return {"item_text_fields": Parameter(str, Search(choices=(",".join(fields), *fields)), "text")}


def _work(
    task: _Task,
    study: optuna.Study,
    threads: int | None,
    helpers: Sequence[subprocess.Popen[bytes]],
) -> int:
    """Run trials, and put the best in force where this process is no helper."""
    if threads:
        torch.set_num_threads(threads)
    options, is_helper = task.options, bool(task.args.threads)
    with threadpool_limits(threads), _trials_are_quiet():
        enough = sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
        if is_helper and enough >= options.trials:
            return 0
        work: Any = _table_work(task, threads) if task.is_ours else _RunWork(task)
        bar = tqdm(
            total=options.trials,
            initial=enough,
            desc=task.name,
            disable=not task.config["show_progress"] or is_helper,
        )
        log = _TrialLog(task, study, bar)
        ended = run_study(study, work, options, log)
        try:
            for helper in helpers if ended else ():
                helper.wait()
        except KeyboardInterrupt:
            ended = False
        if ended and helpers:
            # One of them may have died at its trial.
            ended = run_study(study, work, options, log)
        bar.close()
    if is_helper:
        return 0 if ended else 130
    chosen = choose(study, task.objectives, task.pick)
    if chosen is None:
        if not ended:
            return 130
        reason = first_failure(study)
        if reason is None:
            raise SettingsError("no trial was finished; give it more `timeout` or more `trials`")
        raise SettingsError(f"all trials have failed; the first: {reason}")
    with _trials_are_quiet():
        _put_in_force(task, study, chosen, work)
    return 0 if ended else 130


@contextmanager
def _trials_are_quiet() -> Iterator[None]:
    """The log of a trial is no concern of the study's."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.WARNING)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.setLevel(before)


def _table_work(task: _Task, threads: int | None) -> Any:
    config = task.config
    train, valid, test = load_parts(config)
    if valid is None or not len(valid._dataset):
        raise SettingsError("there are no validation rows to tune on; see `eval_args`")
    cache = task.given.get("signal_cache", str(task.folder / "signals"))
    given = {**task.given, "signal_cache": cache}
    settings = read_model_settings(config.model_class.signal_names, given)
    bench = Bench(
        load=train._dataset.training_data,
        valid=valid._dataset.training_matrix(),
        is_later=valid._dataset.comes_after(train._dataset),
        test=test._dataset.training_matrix() if task.args.report_test else None,
        signal_names=config.model_class.signal_names,
        given=given,
        objectives=task.objectives,
        run=RunOptions(
            device=str(config["device"]),
            seed=config["seed"],
            progress=False,
            n_threads=threads,
            signal_cache=settings.search.signal_cache,
        ),
    )
    if task.level == "weights":
        level = WeightsLevel(bench)
        space = changed(level.space, task.changes, level.space, task.args.space)
        level.starts = [
            {name: within(part, start[name]) for name, part in space.items()}
            for start in level.starts
        ]
        level.space = space
        return level
    return SignalsLevel(bench, task.space, reweighs=task.level == "all")


class _RunWork:
    """A trial is one run of a model of RecBole's."""

    def __init__(self, task: _Task) -> None:
        self.task = task
        self.space: Space = task.space
        self.starts: Sequence[Mapping[str, Any]] = ()
        self.fixed: Mapping[str, Any] = {}

    def __call__(
        self, values: Mapping[str, Any], watch: Watch | None, best: FrozenTrial | None
    ) -> Outcome:
        task, args = self.task, self.task.args
        first = task.objectives[0]
        settings = {**task.values, **self._read(values), "valid_metric": first.name}
        settings.pop("result_file", None)

        def after_epoch(epoch: int, score: float) -> None:
            if watch is not None:
                watch(epoch, score)

        # The best epoch's model is what is tested, and RecBole keeps it in a file alone.
        with tempfile.TemporaryDirectory() as folder:
            if args.report_test:
                settings["checkpoint_dir"] = folder
            record = run(
                args.model,
                args.dataset,
                task.files,
                {**settings, "show_progress": False},
                saved=args.report_test,
                tested=args.report_test,
                after_epoch=after_epoch,
            )["record"]
        valid = record["valid"]
        missing = [part.name for part in task.objectives if part.name not in valid]
        if missing:
            raise SettingsError(f"`objective`: the run has no {missing[0]}; it has {list(valid)}")
        tests = (
            {f"test_{part.name}": record["test"][part.name] for part in task.objectives}
            if args.report_test
            else {}
        )
        return Outcome(tuple(valid[part.name] for part in task.objectives), tests)

    def _read(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Choices that are lists, as lists."""
        return {
            name: yaml.safe_load(value) if isinstance(value, str) and value[:1] == "[" else value
            for name, value in values.items()
        }

    def settings_of(self, trial: FrozenTrial) -> dict[str, Any]:
        """As of the other levels."""
        return self._read(trial.params)


class _TrialLog:
    """Says what a trial has brought: in the log, on the bar, and to TensorBoard."""

    def __init__(self, task: _Task, study: optuna.Study, bar: Any) -> None:
        self.task, self.study, self.bar = task, study, bar
        first = task.objectives[0]
        values = [trial.values[0] for trial in complete_trials(study)]
        self.best = (max if first.maximise else min)(values, default=None)
        self.writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self.writer = SummaryWriter(str(Path("log_tensorboard") / f"study-{task.name}"))

    def __call__(self, trial: FrozenTrial) -> None:
        self.bar.update()
        if trial.state != TrialState.COMPLETE:
            return
        for objective, value in zip(self.task.objectives, trial.values, strict=True):
            if self.writer is not None:
                self.writer.add_scalar(f"study/{objective.name}", value, trial.number)
        first = self.task.objectives[0]
        if self.best is None or first.better(trial.values[0], self.best):
            self.best = trial.values[0]
            chosen = ", ".join(
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                for name, value in trial.params.items()
            )
            logger.info(f"trial {trial.number}: {first.name} {self.best:.6f} ({chosen})")


def _put_in_force(task: _Task, study: optuna.Study, chosen: FrozenTrial, work: Any) -> None:
    """Write ``best.yaml`` and the report."""
    first = task.objectives[0]
    value = chosen.values[0]
    if task.is_ours:
        if len(task.objectives) == 1 and task.args.pick is None:
            chosen, value = beyond_chance(study, chosen, work)
        else:
            value, _ = work.confirmed(chosen)
        if abs(value - chosen.values[0]) > 5e-7:
            logger.info(
                f"trial {chosen.number}: {first.name} {value:.6f} by full ranking, "
                f"{chosen.values[0]:.6f} over the cached scores"
            )
    settings = _best_settings(task, work.settings_of(chosen))
    lines = [
        f"{first.name} {value:.9f} on the validation part, unrounded",
        *summary(study, task.objectives, chosen),
    ]
    text = "".join(f"# {line}\n" for part in lines for line in part.splitlines())
    text += yaml.safe_dump(json.loads(json.dumps(settings, default=str)), sort_keys=False)
    file = task.folder / "best.yaml"
    with whole_file(file) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    for line in write_report(study, task.objectives, chosen, text, task.folder):
        logger.warning(line)
    for line in summary(study, task.objectives, chosen):
        logger.info(line)
    logger.info(f"run_recbole --config_files={file}")


def beyond_chance(study: optuna.Study, chosen: FrozenTrial, work: Any) -> tuple[FrozenTrial, float]:
    """The trial where it is surely better than the first, which is the run without a study.

    The best of many trials owes much to chance: where the 95 % interval of its lead over the
    validation users holds 0, the first trial is taken.

    Returns:
        The trial, and its confirmed objective.
    """
    first = complete_trials(study)[0]
    value, of_users = work.confirmed(chosen)
    if first.number or chosen.number == first.number:
        return chosen, value
    first_value, of_users_before = work.confirmed(first)
    lead = of_users - of_users_before
    error = _SURE * lead.std(ddof=1) / len(lead) ** 0.5
    facts = (
        f"trial {chosen.number} is ahead of the run without a study by {lead.mean():+.6f} "
        f"[{lead.mean() - error:+.6f}, {lead.mean() + error:+.6f}] over {len(lead):,} users"
    )
    if lead.mean() > error:
        logger.info(facts)
        return chosen, value
    logger.info(f"{facts}, no more than chance: that run stays (--pick best takes the trial)")
    return first, first_value


def _best_settings(task: _Task, found: Mapping[str, Any]) -> dict[str, Any]:
    """Flat settings that make the chosen model again."""
    config = task.config
    settings: dict[str, Any] = {"model": task.args.model, "dataset": task.args.dataset}
    settings |= task.given
    metrics = [part.name for part in task.objectives if part.name not in COSTS]
    settings["valid_metric"] = metrics[0]
    if task.is_ours:
        parsed = Metric.parse(metrics[0])
        if parsed.slice_name:
            settings["cold_eval"] = True
        if parsed.name not in map(str.lower, config["metrics"]):
            settings["metrics"] = [*config["metrics"], parsed.name]
        if parsed.k not in config["topk"]:
            settings["topk"] = [*config["topk"], parsed.k]
    return {**settings, **found}
