"""Pictures from records: what they show, that they are the same again, and that their colors are told apart."""

import itertools
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.transforms import Bbox

from robench.cli.main import main
from robench.core.errors import UsageError
from robench.engine.outcome import ResultWarning
from robench.records.collection import collect
from robench.reports.labels import short_names
from robench.reports.plots import PLOTS, find_plot, style
from robench.reports.plots.curves import Curve, Point, draw
from robench.reports.plots.heatmaps import heat_maps
from tests.fabricate import make_run
from tests.reports.test_board import with_robust

BEGINNINGS = {"png": b"\x89PNG\r\n", "svg": b"<?xml", "pdf": b"%PDF-"}
# Machado, Oliveira, Fernandes 2009: how the colour-blind see linear RGB, at full severity.
BLINDNESS = {
    "nobody": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


def linear(colour):
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIE L*a*b* of linear RGB, white being (1, 1, 1)."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ rgb / (to_xyz @ np.ones(3))
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_colours_are_told_apart_in_grey_by_their_lightness():
    for a, b in itertools.combinations(style.COLOURS, 2):
        assert abs(lab(linear(a))[0] - lab(linear(b))[0]) >= 9, (a, b)
    assert all(lab(linear(colour))[0] <= 85 for colour in style.COLOURS)  # still seen on white


@pytest.mark.parametrize("kind", BLINDNESS)
def test_colours_are_told_apart_by_the_colour_blind(kind):
    seen = [lab(np.clip(np.array(BLINDNESS[kind]) @ linear(colour), 0, 1)) for colour in style.COLOURS]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) >= 15


def test_no_two_of_many_curves_look_alike():
    looks = [(style.colour(i), style.marker(i), style.dash(i)) for i in range(28)]
    assert len(set(looks)) == 28
    assert len({look[1] for look in looks[:7]}) == 7


def test_the_shades_of_a_heat_map_rise_in_lightness():
    from matplotlib import colormaps

    lightness = [lab(linear(colormaps[style.SHADES](i)[:3]))[0] for i in range(0, 256, 15)]
    assert (np.diff(lightness) > 0).all()


CURVE = [Curve("one", [Point(x, 1 - x, (0.9 - x, 1 - x)) for x in (0.1, 0.2, 0.4)])]


@pytest.mark.parametrize("form", style.FORMATS)
def test_each_format_is_written_and_the_same_again(tmp_path, form):
    made = [
        style.save(draw(CURVE, "radius", "title"), tmp_path / f"{i}.{form}").read_bytes() for i in range(2)
    ]
    assert made[0] == made[1] and made[0].startswith(BEGINNINGS[form])
    assert not re.search(rb"20\d\d-\d\d-\d\dT|D:20\d\d", made[0])  # no date inside


def test_another_format_is_refused(tmp_path):
    with pytest.raises(UsageError, match='unknown plot format "gif": expected one of png, svg, pdf'):
        style.save(draw(CURVE, "radius", "title"), tmp_path / "a.gif")


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(min_size=1, max_size=30))
@example("_")
def test_hostile_names_are_drawn_as_they_are(name):
    """Without a warning (which would be an error here), and the SVG is still XML, with nothing in it but pictures."""
    figure = draw([Curve(name, CURVE[0].points)], name, name)
    assert len(figure.axes[0].get_legend().get_texts()) == 1
    tree = ElementTree.fromstring(style.encode(figure, "svg"))
    assert not [each for each in tree.iter() if str(each.tag).endswith(("script", "}a", "foreignObject"))]


def named_lines(figure):
    """The curves by name; the ends of their intervals have none."""
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    return {name: line for name, line in lines.items() if not name.startswith("_")}


def test_a_scatter_shows_every_defense_of_a_ranking_and_hollow_the_doubtful(tmp_path):
    make_run(tmp_path, defense="sound").write()
    make_run(tmp_path, defense="doubted", health=[ResultWarning("zero-gradients", "all")]).write()
    make_run(tmp_path, defense="alone", knowledge="oblivious").write()
    figures = PLOTS["scatter"].draw(collect([tmp_path]))
    (figure,) = figures.values()
    assert list(figures) == ["digits-linf-autoattack-full"]
    (axes,) = figure.axes
    handles, labels = axes.get_legend_handles_labels()
    assert sorted(labels) == ["doubted", "sound"]
    face = {
        label: handle.lines[0].get_markerfacecolor() for label, handle in zip(labels, handles, strict=True)
    }
    assert face["doubted"] == "white" and face["sound"] != "white"


def test_the_names_in_a_scatter_overlap_neither_each_other_nor_the_frame(tmp_path):
    for i in range(12):
        make_run(tmp_path, draw=0, defense=f"defense-number-{i}").write()
    (figure,) = PLOTS["scatter"].draw(collect([tmp_path])).values()
    axes = figure.axes[0]
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts]
    frame = axes.get_window_extent()
    assert boxes and not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 for box in boxes)
    low, high = axes.get_ylim()
    assert high - low < 60  # zoomed to the intervals
    unnamed = [text.get_text() for text in figure.texts if "no room" in text.get_text()]
    assert bool(unnamed) == (len(boxes) < 12)


def test_the_names_in_a_scatter_are_beside_the_intervals(tmp_path):
    for name, correct in (("one", 3), ("another", 20)):
        with_robust(make_run(tmp_path, defense=name), correct)
    (figure,) = PLOTS["scatter"].draw(collect([tmp_path])).values()
    axes = figure.axes[0]
    figure.canvas.draw()
    segments = [lines.get_segments()[0] for bar in axes.containers for lines in bar.lines[2]]
    intervals = [Bbox(axes.transData.transform(segment)) for segment in segments]
    names = [text.get_window_extent() for text in axes.texts]
    assert len(names) == 2 and len(intervals) == 4
    assert not any(name.overlaps(interval) for name in names for interval in intervals)


def test_names_keep_only_the_arguments_that_tell_them_apart():
    names = ['a(size_mode="tile")+c', 'a(size_mode="crop", t=3)+c', "b(sigma=1)"]
    assert short_names(names) == ["a(tile)+c", "a(crop, t=3)+c", "b"]


def test_security_curves_begin_with_clean_accuracy_and_go_over_the_radii(tmp_path):
    records = [
        make_run(tmp_path, threat=f"Linf:{eps}", protocol=f"p{eps}").write()
        for eps in ("8/255", "0.1", "0.01")
    ]
    make_run(tmp_path, defense="once").write()
    (figure,) = PLOTS["security"].draw(collect([tmp_path])).values()
    (line,) = named_lines(figure).values()
    assert line.get_xdata() == pytest.approx([0, 0.01, 8 / 255, 0.1])
    assert line.get_ydata()[0] == pytest.approx(100 * records[0].clean_accuracy.value)


def test_a_trade_off_takes_what_the_name_does_not_say_from_the_card(tmp_path):
    for name in ("de3-digits(sigma=0)", "de3-digits", "de3-digits(sigma=140)"):
        for knowledge in ("full", "oblivious"):
            make_run(tmp_path, defense=name, knowledge=knowledge).write()
    (figure,) = PLOTS["trade-off"].draw(collect([tmp_path])).values()
    lines = {name: list(line.get_xdata()) for name, line in named_lines(figure).items()}
    assert lines == {name: [0, 70, 140] for name in ("clean", "robust, full", "robust, oblivious")}


def test_the_old_name_of_a_plot_works_with_a_line_that_it_is_deprecated(tmp_path, capsys, monkeypatch):
    for knowledge in ("full", "transfer:standard"):
        make_run(tmp_path / "results", defense="one", knowledge=knowledge).write()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["plot", "transfer"])
    out, err = capsys.readouterr()
    assert ended.value.code == 0 and out.startswith("plots/transfer-attacks-")
    assert err.splitlines() == [
        'robench: the plot "transfer" is now called "transfer-attacks"; the old name is deprecated'
    ]
    assert find_plot("transfer") is PLOTS["transfer-attacks"]


def test_a_transfer_matrix_has_a_row_a_target_and_a_column_a_source(tmp_path):
    for target in ("one", "two"):
        for knowledge in ("full", "transfer:standard"):
            make_run(tmp_path, defense=target, knowledge=knowledge).write()
    make_run(tmp_path, defense="three", knowledge="transfer:other").write()
    (figure,) = PLOTS["transfer-attacks"].draw(collect([tmp_path])).values()
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["itself", "other", "standard"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "three", "two"]
    assert len([text for text in axes.texts if text.get_text()]) == 5


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 15), (15, 2)])
def test_a_heat_map_of_any_shape_finds_room(rows, columns):
    rows, columns = [f"row {i}" * 9 for i in range(rows)], [f"column {i}" for i in range(columns)]
    cells = {(row, column): 0.5 for row in rows for column in columns}
    # Too little room would be a warning, an error.
    style.encode(heat_maps({"": cells}, rows, columns, "title", "x", "y"))


def test_the_command_writes_what_it_names_and_says_what_is_missing(tmp_path, capsys, monkeypatch):
    for name in ("one", "two"):
        make_run(tmp_path / "results", defense=name).write()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["plot", "all", "--format", "png,svg", "--output", "here"])
    told = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0
    made = [line for line in told if line.startswith("here/")]
    assert made == [f"here/scatter-digits-linf-autoattack-full.{form}" for form in ("png", "svg")]
    assert all((tmp_path / line).stat().st_size > 1000 for line in made)
    assert [line.split()[3] for line in told if line.startswith("No records")] == [
        name for name in PLOTS if name != "scatter"
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plot", "scater"], 'unknown plot "scater": did you mean scatter?'),
        (["plot", "all", "--format", "gif"], 'unknown format "gif": expected one of png, svg, pdf'),
        (["plot", "all", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_mistakes_are_said_in_one_line(tmp_path, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code in (2, 3) and said in capsys.readouterr().err


def test_every_kind_can_be_imported():
    assert all(find_plot(name).draw([]) == {} for name in PLOTS)
