"""``recbole-llm tune``: a study of a model's settings, ours or RecBole's."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from optuna.trial import FrozenTrial, TrialState
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from recbole_llm.errors import SettingsError
from recbole_llm.evaluation import Metric
from recbole_llm.host.run import load_parts, make_folder, run
from recbole_llm.host.tuning_task import TuningTask
from recbole_llm.levels import COSTS, LEVELS, Bench, SignalsLevel, WeightsLevel, within
from recbole_llm.model_settings import read_model_settings
from recbole_llm.settings import RunOptions
from recbole_llm.tuning.objectives import choose, complete_trials, first_failure
from recbole_llm.tuning.report import summary, write_report
from recbole_llm.tuning.samplers import PRUNERS, SAMPLERS, make_sampler
from recbole_llm.tuning.spaces import Space, changed, describe
from recbole_llm.tuning.study import Outcome, Watch, open_study, run_study
from recbole_llm.whole_file import whole_file

logger = logging.getLogger("recbole_llm.tuning")

# Standard errors on both sides of a 95 % interval.
_SURE = 1.96


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
    task = TuningTask.of(args)
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


def _work(
    task: TuningTask,
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


def _table_work(task: TuningTask, threads: int | None) -> Any:
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

    def __init__(self, task: TuningTask) -> None:
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

    def __init__(self, task: TuningTask, study: optuna.Study, bar: Any) -> None:
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


def _put_in_force(task: TuningTask, study: optuna.Study, chosen: FrozenTrial, work: Any) -> None:
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


def _best_settings(task: TuningTask, found: Mapping[str, Any]) -> dict[str, Any]:
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
