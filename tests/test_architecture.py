"""The two rules of the house."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "recbole_llm"
HOST = {"host", "models", "cli.py"}
# Lowest first; a module imports only what stands before it, or its own layer.
LAYERS = [
    ["errors", "whole_file"],
    ["settings", "factors", "calibration", "text", "augmentation", "atomic_files", "table_files"],
    [
        "training_data",
        "scoring",
        "slices",
        "column_values",
        "values",
        "frozen_layers",
        "attributes",
    ],
    ["importing", "cold_split"],
    ["encoders", "evaluation"],
    ["embedding_cache", "intent", "completion", "cold_metrics", "sequence_network"],
    ["text_network", "back_translation", "item_form"],
    ["tower_network"],
    ["tower_training"],
    ["signals"],
    ["signal_cache"],
    ["newcomers"],
    ["saved_tables"],
    ["vectors", "serving"],
    ["serving_commands"],
    ["fusion"],
    ["tuning", "model_settings"],
    ["fitting"],
    ["levels", "value_fitting"],
    ["host", "models"],
    ["cli"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def modules():
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).parts
        if parts[0] not in ("testing", "__init__.py"):
            yield parts[0].removesuffix(".py"), parts, file


def test_every_module_runs_without_recbole_but_the_hosts():
    names = [
        ".".join(("recbole_llm", *parts)).removesuffix(".py").removesuffix(".__init__")
        for _, parts, _ in modules()
        if parts[0] not in HOST
    ]
    code = "import sys, importlib; sys.modules['recbole'] = None\n" + "\n".join(
        f"importlib.import_module('{name}')" for name in names
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_imports_point_downwards():
    upward = []
    for own, parts, file in modules():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("recbole_llm."):
                other = node.module.split(".")[1]
                if RANK[other] > RANK[own]:
                    upward.append(f"{'/'.join(parts)} imports {other}")
    assert not upward
