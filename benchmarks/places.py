"""Folders of data that benchmarks make of others: in order, with shuffled texts, with a cold split.

Each is made under another name and renamed, so that one that is there is whole.
"""

import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import yaml

# Their files sort what came at one moment, by an invoice's lines and by a catalogue's numbers. That
# is no order in which somebody wanted things, so it is drawn; ml-100k's rows are in no order.
_SORTED = ("online-retail", "ml-latest-small-text")


def source_of(dataset, data_path):
    """The folder of a data set: below `data_path`, else the one that comes with RecBole."""
    if data_path and (data_path / dataset).is_dir():
        return data_path / dataset
    # Not by its Config, which reads the command line.
    return Path(find_spec("recbole").submodule_search_locations[0]) / "dataset_example" / dataset


@contextmanager
def _made(folder):
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
    yield unfinished
    unfinished.rename(folder)


def own_settings(source):
    """The settings of a data set's own YAML."""
    own = source / f"{source.name}.yaml"
    return (yaml.safe_load(own.read_text()) or {}) if own.is_file() else {}


def read_atomic(file):
    """One of RecBole's files as text, its columns by their names without types."""
    rows = pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False)
    rows.columns = [column.partition(":")[0] for column in rows.columns]
    return rows


def ordered(source, folder):
    """A copy that says the order alone: each pair once, the first one, and the rank of its time.

    RecBole's float32 rounds the times themselves. Rows of one moment share a rank, and RecBole
    leaves them as the file has them.
    """
    if folder.is_dir():
        return folder
    settings = own_settings(source)
    rows = read_atomic(source / f"{source.name}.inter")
    order = rows[settings.get("TIME_FIELD", "timestamp")].astype(float)
    rows = rows.assign(order=order)
    if source.name in _SORTED:
        rows = rows.sample(frac=1, random_state=0)
    rows = rows.sort_values("order", kind="stable")
    rows = rows.drop_duplicates(["user_id", "item_id"])
    rows = rows.assign(order=rows["order"].rank(method="dense").astype(int))
    head = ["user_id:token", "item_id:token", "order:float"]
    kept = {name: settings[name] for name in ("item_text_fields",) if name in settings}
    kept |= {"load_col": {"inter": ["user_id", "item_id", "order"]}, "TIME_FIELD": "order"}
    with _made(folder) as unfinished:
        rows[["user_id", "item_id", "order"]].to_csv(
            unfinished / f"{folder.name}.inter", sep="\t", index=False, header=head
        )
        shutil.copy(source / f"{source.name}.item", unfinished / f"{folder.name}.item")
        (unfinished / f"{folder.name}.yaml").write_text(yaml.safe_dump(kept))
    return folder


def shuffled(source, folder, seed):
    """A copy whose items have each other's texts."""
    if folder.is_dir():
        return folder
    with _made(folder) as unfinished:
        for file in source.iterdir():
            if file.name.startswith(f"{source.name}."):
                name = folder.name + file.name.removeprefix(source.name)
                shutil.copyfile(file, unfinished / name)
        file = unfinished / f"{folder.name}.item"
        items = pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False)
        items.iloc[:, 1:] = items.iloc[:, 1:].sample(frac=1, random_state=seed).to_numpy()
        items.to_csv(file, sep="\t", index=False)
    return folder


def cold_split(dataset, data_path, out, seed, cold, settings=()):
    """The folder of a cold split by `recbole-llm split`, made where it is not there."""
    folder = out / f"{dataset}-cold-{cold}-{seed}"
    if not folder.is_dir():
        arguments = ["split", "--dataset", dataset, "--seed", str(seed), "--cold", cold]
        arguments += ["--data_path", str(data_path)] if data_path else []
        arguments += ["--out", str(out)]
        arguments += [f"--{name}={value}" for name, value in dict(settings).items()]
        program = Path(sys.executable).with_name("recbole-llm")
        done = subprocess.run([program, *arguments], check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr.strip())
    return folder
