"""What the cold evaluation costs beside RecBole's plain one, of the same scores.

python benchmarks/cold_cost.py --data_path DATA --datasets ml-100k amazon-scientific
RecBole's BPR as it is made, whose training changes no time: its test part is evaluated both ways
by turns. A data set is a file in benchmarks/results/cold_cost/, which cold_start_report.py shows.
"""

import json
import statistics
from time import perf_counter

import cold_start
from recbole.utils import get_model, get_trainer, init_seed

from recbole_llm.host.config import prepare
from recbole_llm.host.run import load_parts, read_config

RESULTS = cold_start.HERE / "results" / "cold_cost"
TURNS = 7


def evaluation(dataset, args, cold_eval):
    """A function that evaluates the test part of a cold split, and how many rows that has."""
    seed = args.seeds[0]
    values = {"data_path": str(args.work / "splits"), "seed": seed, "cold_eval": cold_eval}
    values |= {"topk": [10, 20], "state": "WARNING"}
    config = read_config("BPR", f"{dataset}-cold-items-{seed}", [], values)
    init_seed(config["seed"], config["reproducibility"])
    prepare(config)
    train, _, test = load_parts(config)
    model = get_model("BPR")(config, train._dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], "BPR")(config, model)
    trainer.eval_collector.data_collect(train)
    return lambda: trainer.evaluate(test, load_best_model=False), len(test._dataset.inter_feat)


def seconds(evaluate):
    start = perf_counter()
    evaluate()
    return perf_counter() - start


def main():
    args = cold_start.options(RESULTS)
    for dataset in args.datasets:
        cold_start.make_split(args, dataset, args.seeds[0], "items")
        (plain, n_rows), (cold, _) = (evaluation(dataset, args, value) for value in (False, True))
        # The first turn warms up.
        turns = [(seconds(plain), seconds(cold)) for _ in range(1 + TURNS)][1:]
        found = {
            "dataset": dataset,
            "rows": n_rows,
            "plain_seconds": statistics.median(turn[0] for turn in turns),
            "ratio": statistics.median(turn[1] / turn[0] for turn in turns),
        }
        (RESULTS / f"{dataset}.json").write_text(json.dumps(found) + "\n")
        print(found, flush=True)


if __name__ == "__main__":
    main()
