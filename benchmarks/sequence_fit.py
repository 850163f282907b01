"""One fit of `sequence.py` in a process of its own: where it ranks what each user took next.

python benchmarks/sequence_fit.py --model=… --dataset=… --seconds=… --result_file=…
Every model is judged by one evaluator over its scores, under two rules. `masked`: what a user has
taken before is not ranked; `ranked`: it is. Models that can fold a history in know their users by
validation too when they are tested, as every sequential model does.
"""

import json
import sys
from operator import itemgetter
from pathlib import Path
from time import perf_counter

import numpy as np
import scipy.sparse as sp
import torch
from recbole.utils import get_model, get_trainer, init_seed
from timed_training import fit_within

from recbole_llm.cli import parse_arguments
from recbole_llm.host.config import prepare
from recbole_llm.host.run import load_parts, read_config

# One to know a user by, one to choose by and one to test.
_FEWEST = 3


def histories(dataset, folder, name):
    """Every user's items by RecBole's numbers, in order; those of one moment as in the file."""
    found = {}
    for line in (folder / f"{name}.inter").read_text().splitlines()[1:]:
        user, item, order = line.split("\t")
        found.setdefault(user, []).append((float(order), item))
    return {
        dataset.token2id(dataset.uid_field, user): dataset.token2id(
            dataset.iid_field, [item for _, item in sorted(rows, key=itemgetter(0))]
        )
        for user, rows in found.items()
    }


def ranks(model, loader, orders, steps_before_last, seed):
    """Places of the items that came next, from 1, by users: masked, and ranked.

    Who has fewer than three items leaves none to know her by, and is not asked about, as no
    sequential model is by RecBole. Equal scores are told apart by a seeded order of the items.
    """
    found = {}
    n_items = loader._dataset.item_num
    tie = np.random.default_rng(seed).permutation(n_items)
    for interaction, _, _, positives in loader:
        interaction = interaction.to(model.device)
        with torch.no_grad():
            scores = model.full_sort_predict(interaction).view(-1, n_items).float().cpu().numpy()
        users = interaction[model.USER_ID].tolist()
        for user, row, wanted in zip(users, scores, positives.tolist(), strict=True):
            items = orders[user]
            if len(items) < _FEWEST:
                continue
            place = len(items) - 1 - steps_before_last
            assert items[place] == wanted, "RecBole has another order"
            known = items[:place]
            better = (row > row[wanted]) | ((row == row[wanted]) & (tie < tie[wanted]))
            better[0] = False
            found[user] = (int(better.sum() - better[known].sum()) + 1, int(better.sum()) + 1)
    return np.array([found[user] for user in sorted(found)])


def fold_in(model, valid, test):
    """Let a peer know its users by the validation part, too."""
    rows = valid._dataset.inter_feat
    users, items = (rows[field].numpy() for field in (model.USER_ID, model.ITEM_ID))
    name = type(model).__name__
    if hasattr(model, "remember"):
        model.remember(test._dataset.grown_histories())
    elif name == "Pop":
        model.item_cnt[:, 0] += torch.from_numpy(np.bincount(items, minlength=len(model.item_cnt)))
    elif name in ("EASE", "SLIMElastic", "ItemKNN"):
        added = sp.csr_matrix(
            (np.ones(len(users), np.float32), (users, items)), model.interaction_matrix.shape
        )
        model.interaction_matrix = (model.interaction_matrix + added).tocsr()
        if name == "ItemKNN":
            model.pred_mat = model.interaction_matrix.dot(model.w).tolil()
    else:
        return False
    return True


def measures(places):
    """NDCG@10 and Recall@10 of one wanted item for each user, under both rules."""
    return {
        rule: {
            "ndcg@10": float(np.mean((row <= 10) / np.log2(row + 1))),
            "recall@10": float(np.mean(row <= 10)),
        }
        for rule, row in zip(("masked", "ranked"), places.T, strict=True)
    }


def main():
    values = parse_arguments(sys.argv[1:])
    seconds, file = float(values.pop("seconds")), Path(values.pop("result_file"))
    started = perf_counter()
    config = read_config(values.pop("model"), values.pop("dataset"), [], values)
    init_seed(config["seed"], config["reproducibility"])
    prepare(config)
    train, valid, test = load_parts(config)
    init_seed(config["seed"], config["reproducibility"])
    model = get_model(config["model"])(config, train._dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    epochs, was_cut = fit_within(trainer, train, valid, started, seconds)
    fitted = perf_counter() - started
    trainer.evaluate(valid, load_best_model=True, show_progress=False)
    model.eval()
    orders = histories(train._dataset, Path(config["data_path"]), config["dataset"])
    chosen_by = ranks(model, valid, orders, 1, config["seed"])
    folds_in = fold_in(model, valid, test)
    places = ranks(model, test, orders, 0, config["seed"])
    found = {
        "seconds": fitted,
        "was_cut": was_cut,
        "epochs": epochs,
        "folds_in": folds_in,
        "excludes_seen": bool(getattr(model, "excludes_seen", False)),
        "valid": measures(chosen_by),
        "test": measures(places),
        "places": places.T.tolist(),
    }
    file.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
