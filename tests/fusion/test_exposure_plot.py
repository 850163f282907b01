"""The picture of what each level of `cold_exposure` gives."""

import numpy as np
import pytest

from recbole_llm.errors import SettingsError
from recbole_llm.fusion import check_plot_file, draw_exposure, write_exposure_plot

CURVE = [
    {"level": level, "cold_share": share, "all": a, "warm_in_all": warm, "cold_in_all": cold}
    for level, share, a, warm, cold in (
        (-1.0, 0.0, 0.20, 0.30, 0.01),
        (0.0, 0.1, 0.25, 0.28, 0.10),
        (1.0, 0.6, 0.22, 0.12, 0.16),
    )
]
UNASKED = {"level": 2.0, "cold_share": 1.0, "all": 0.1, "warm_in_all": 0.0, "cold_in_all": None}
STARTS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


def test_points_are_the_curves_and_the_level_in_force_has_a_ring():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axis = figure.add_subplot()
    points = draw_exposure(axis, [*CURVE, UNASKED], 0.2)
    drawn = [(p["warm_in_all"], p["cold_in_all"]) for p in CURVE]
    np.testing.assert_allclose(points.get_offsets(), drawn)
    np.testing.assert_allclose(points.get_array(), [p["all"] for p in CURVE])
    _, ring = axis.collections
    np.testing.assert_allclose(ring.get_offsets(), [drawn[1]])
    assert ring.get_label() == "in force: level 0.20, 10% cold"


@pytest.mark.parametrize("ending", STARTS)
def test_the_picture_is_of_the_kind_that_its_name_says(tmp_path, ending):
    pytest.importorskip("matplotlib")
    file = tmp_path / f"curve{ending}"
    write_exposure_plot(CURVE, 0.0, "ndcg@10", str(file))
    assert file.read_bytes().startswith(STARTS[ending])
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("curve.bmp", r"ends in \.png, \.svg, \.pdf, got '.*curve\.bmp'"),
        ("curve", "ends in"),
        ("nowhere/curve.png", "cannot write to the folder"),
    ],
)
def test_a_file_that_cannot_be_a_picture_is_named(tmp_path, name, message):
    with pytest.raises(SettingsError, match=message):
        check_plot_file(str(tmp_path / name))


def test_a_missing_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install recbole_llm\[tune\]"):
        check_plot_file(str(tmp_path / "curve.png"))
