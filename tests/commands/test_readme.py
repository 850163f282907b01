"""The README's code blocks run as they are written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
README = (ROOT / "README.md").read_text()
BLOCKS = [
    (language, code)
    for language, code in re.findall(r"```(bash|python)\n(.*?)```", README, re.DOTALL)
    # What installs the environment that this test runs in.
    if not code.startswith("make ")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tables that the blocks speak of."""
    place = tmp_path_factory.mktemp("readme")
    clicks = [f"u{user},p{(7 * user + 3 * step) % 25}" for user in range(40) for step in range(9)]
    (place / "clicks.csv").write_text("\n".join(["user,product", *clicks]) + "\n")
    items = [f"p{item},{['red wool coat', 'steel knife'][item % 2]} {item}" for item in range(25)]
    (place / "items.csv").write_text("\n".join(["product,title", *items]) + "\n")
    return place


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_readmes_code_runs_as_written(folder, number):
    language, code = BLOCKS[number]
    command = ["bash", "-euc", code] if language == "bash" else [sys.executable, "-c", code]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if "run_recbole" in code:
        assert "test result" in done.stderr


@pytest.mark.parametrize(
    ("script", "report", "tables"),
    [
        (
            "cold_start_report",
            "cold_start.md",
            {"cold_start": "readme_lines(found)", "new_users": "new_user_lines(made.fold_ins())"},
        ),
        ("sequence", "sequence.md", {"sequence": "readme_lines(found)"}),
        (
            "finetune",
            "finetune/finetune.md",
            {"towers": "cold_lines(found)", "values": "value_lines(found)"},
        ),
    ],
)
def test_no_number_of_a_reports_tables_is_typed_by_hand(script, report, tables):
    code = (
        f"import readme, {script} as made; found = made.cells();"
        "print('\\n'.join(made.report_lines(found)), end='\\0');"
        "text = readme.FILE.read_text();"
    )
    code += "".join(
        f"text = readme.with_table(text, {name!r}, made.{lines});" for name, lines in tables.items()
    )
    code += "print(text, end='')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS)},
        capture_output=True,
        text=True,
        check=True,
    )
    made, readme = done.stdout.split("\0")
    assert made.strip() == (BENCHMARKS / "results" / report).read_text().strip()
    assert readme == README
