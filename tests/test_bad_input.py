"""Bad input through the real command line: one line, a non-zero exit, nothing lost."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

RNG = np.random.default_rng(0)
WORDS = ["red", "blue", "green", "shoe", "hat", "lamp", "wood", "steel", "summer", "river"]
TITLES = [" ".join(RNG.choice(WORDS, 4)) for _ in range(30)]
ODD_TITLES = [
    "<b>Red</b> &amp; <i>blue</i> shoe",
    "😀👩‍🚀 hat 🏳️‍🌈",
    " ".join(f"word{number}" for number in range(10_000)),
    "nan",
    "",
]
ROWS = [
    (f"u{user}", f"i{item}", int(RNG.integers(1, 6)), 1000 + 10 * user + int(item))
    for user in range(50)
    for item in RNG.choice(30, 10, replace=False)
]
RUN = Path(sys.executable).with_name("run_recbole")


def write_data(folder, name, rows=ROWS, titles=TITLES, *, head=None):
    """A data set of atomic files; ``titles`` None: no .item file."""
    place = folder / name
    place.mkdir(parents=True)
    head = head or "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    lines = [head, *("\t".join(map(str, row)) for row in rows)]
    (place / f"{name}.inter").write_text("\n".join(lines) + "\n")
    (place / f"{name}.yaml").write_text(
        "load_col:\n  inter: [user_id, item_id, rating, timestamp]\n"
    )
    if titles is not None:
        items = [f"i{number}\t{title}" for number, title in enumerate(titles)]
        (place / f"{name}.item").write_text(
            "\n".join(["item_id:token\ttitle:token_seq", *items]) + "\n"
        )


def replaced(value):
    return [(*ROWS[0][:2], value, 1000), *ROWS[1:]]


DATA = {
    "good": {},
    "one_user": {"rows": [("u0", f"i{item}", 3, 1000 + item) for item in range(30)]},
    "single": {"rows": [(f"u{user}", f"i{user % 30}", 3, 1000) for user in range(50)]},
    "no_item_file": {"titles": None},
    "no_text": {"titles": [""] * 30},
    "nan_text": {"titles": ["nan"] * 30},
    "odd_text": {"titles": ODD_TITLES * 6},
    "nan_rating": {"rows": replaced("")},
    "negative": {"rows": replaced(-2)},
    "words_as_numbers": {"rows": replaced("good")},
    "empty": {"rows": []},
    "no_types": {"head": "user_id\titem_id\trating\ttimestamp"},
}
QUICK = ["--signal_search_trials=1", "--weight_trials=3", "--encoder=lexical"]

# data set, arguments, what the one line says
REFUSED = [
    ("good", ["--model=HybridFusion", "--item_text_field=title"], "did you mean `item_text_fiel"),
    ("good", ["--model=HybridFusion", "--signals=als,lightfn"], "did you mean `lightfm`?"),
    ("good", ["--model=HybridFusion", "--encoder=brt"], "did you mean `bert`?"),
    ("good", ["--model=HybridFusion", "--cold_exposure=lots"], "`cold_exposure` must be auto, a"),
    ("good", ["--model=HybridFusion", "--new_users=never"], "`new_users` must be one of auto, s"),
    (
        "good",
        ["--model=HybridFusion", "--signals=als,text_map", "--new_users=popularity"],
        "`new_users` is popularity, which is not among `signals`",
    ),
    ("good", ["--model=HybridFusion", "--fusion=gate"], "`fusion` must be one of weighted_sum"),
    ("good", ["--model=HybridFusoin"], "did you mean `HybridFusion`?"),
    ("good", ["--model=TextIntent", "--item_text_fields=titel"], "has no field `titel`"),
    (
        "good",
        ["--model=HybridFusion", "--item_attribute_fields=titel"],
        "`item_attribute_fields`: ",
    ),
    (
        "no_item_file",
        ["--model=HybridFusion", "--item_attribute_fields=brand"],
        "`item_attribute_fields` is set, but there is no file no_item_file.item",
    ),
    ("good", ["--model=TextIntent", "--encoder=./nowhere"], "nowhere"),
    ("good", ["--model=ALS", "--checkpoint_dir=/dev/null/saved"], "`checkpoint_dir`"),
    ("good", ["--model=TextIntent", "--embedding_cache=/dev/null/cache"], "`embedding_cache`"),
    ("good", ["--model=ALS", "--result_file=/dev/null/record/r.json"], "`result_file`"),
    ("good", ["--model=ALS", "--als_factors", "10"], "write --als_factors=10"),
    ("good", ["--model=ALS", "--als_factors=ten"], "`als_factors` must be a number"),
    ("good", ["--model=ALS", "--nproc=2"], "`nproc`"),
    ("good", ["--model=ALS", "--nproc=two"], "`nproc` must be a whole number"),
    ("good", ["--model=ALS", "--seed=abc"], "`seed` must be a number, got 'abc'"),
    ("good", ["--model=ALS", "--device=tpu"], "`device`"),
    ("good", ["--model=BPR", "--valid_metric=foo"], "`valid_metric` is foo, but `metrics` and"),
    ("good", ["--model=ALS", "--topk=5000", "--valid_metric=NDCG@5000"], "`topk` is 5000"),
    (
        "good",
        ["--model=ALS", "--metrics=['AUC']", "--eval_args={'mode': 'labeled'}"],
        "`metrics` holds AUC",
    ),
    ("good", ["--model=ALS", "--interaction_weight_field=ratng"], "did you mean `rating`?"),
    ("good", ["--model=BPR", "--learning_rat=3"], "did you mean `learning_rate`?"),
    ("good", ["--model=HybridFusion", "--user_text_fields=age"], "no file good.user"),
    ("nowhere", ["--model=ALS"], "nowhere.inter; check `dataset`"),
    ("no_item_file", ["--model=TextIntent"], "`item_text_fields`"),
    ("no_text", ["--model=TextIntent"], "no item has a text"),
    ("nan_text", ["--model=TextIntent"], "no item has a text"),
    ("one_user", ["--model=ALS"], "`user_inter_num_interval`"),
    ("nan_rating", ["--model=ALS"], "`rating` is no number in 1 rows"),
    ("negative", ["--model=ALS", "--interaction_weight_field=rating"], "is negative in 1 rows"),
    ("words_as_numbers", ["--model=ALS"], "rating:float"),
    ("words_as_numbers", ["--model=BPR"], "rating:float"),
    ("empty", ["--model=ALS"], "data set empty"),
    ("no_types", ["--model=ALS"], "no_types.inter, line 1: `user_id`"),
]
# data set, arguments, what the log says beside
SERVED = [
    ("single", ["--model=HybridFusion", *QUICK], "no validation rows: the signals count equally"),
    ("no_item_file", ["--model=HybridFusion", *QUICK], "no file no_item_file.item"),
    ("no_text", ["--model=HybridFusion", *QUICK], "left out, no item has a text"),
    ("odd_text", ["--model=HybridFusion", *QUICK], "texts: 18 of 30 items have one"),
    ("negative", ["--model=HybridFusion", *QUICK], "test result"),
]


def case(row):
    return f"{row[0]}-{'-'.join(row[1])[8:60]}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("bad")
    for name, parts in DATA.items():
        write_data(root, name, **parts)
    return root


def command(folder, dataset, arguments):
    return [str(RUN), f"--dataset={dataset}", f"--data_path={folder}", *arguments]


def run_as_command(arguments, folder, log):
    """The body of the ``run_recbole`` script, in a process whose output is a file."""
    from recbole_llm.cli import run_recbole_command

    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    output = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["run_recbole", *arguments]
    sys.exit(run_recbole_command())


@pytest.fixture(scope="module")
def outcomes(folder):
    """Exit code and output of every case, each a process forked after the imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["recbole_llm.cli"])
    found = {}
    for number, row in enumerate([*REFUSED, *SERVED]):
        log = folder / f"{number}.log"
        arguments = command(folder, row[0], [*row[1], "--show_progress=False"])[1:]
        process = context.Process(target=run_as_command, args=(arguments, folder, log))
        process.start()
        process.join(120)
        found[case(row)] = process.exitcode, log.read_text()
    return found


@pytest.mark.parametrize("row", REFUSED, ids=case)
def test_bad_input_gets_one_line_and_a_nonzero_exit(outcomes, row):
    code, said = outcomes[case(row)]
    assert code == 1, said
    assert "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert row[2] in last


@pytest.mark.parametrize("row", SERVED, ids=case)
def test_poor_data_are_served_and_said(outcomes, row):
    code, said = outcomes[case(row)]
    assert code == 0, said
    assert row[2] in said
    assert "Traceback" not in said


def test_a_damaged_cache_entry_is_encoded_again_with_a_warning(folder):
    env = {**os.environ, "XDG_CACHE_HOME": str(folder / "damaged")}
    arguments = ["--model=TextIntent", "--encoder=bert", "--show_progress=False"]
    runs = []
    for _ in range(2):
        runs.append(
            subprocess.run(
                command(folder, "good", arguments),
                cwd=folder,
                env=env,
                capture_output=True,
                text=True,
                check=True,
            ).stderr
        )
        entries = [file for file in (folder / "damaged").rglob("*") if file.is_file()]
        assert entries
        for entry in entries:
            entry.write_bytes(entry.read_bytes()[:-20])
    assert "0 from the cache" in runs[1]
    assert "damaged" in runs[1]
    results = [log.split("test result")[1] for log in runs]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "phase", ["valid_metric is not set", "item text fields", "texts: ", "popularity: "]
)
def test_ctrl_c_ends_with_one_line_in_any_phase(folder, phase):
    """The phases: loading, encoding, fitting and searching signals, tuning."""
    process = subprocess.Popen(
        command(folder, "good", ["--model=HybridFusion", "--weight_trials=500"]),
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / f"stopped{phase[:3]}")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = ""
    for line in process.stderr:
        said += line
        if phase in line:
            process.send_signal(signal.SIGINT)
            break
    assert phase in said
    said += process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert said.strip().splitlines()[-1].startswith("stopped by Ctrl-C")
