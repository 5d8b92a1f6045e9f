from condense.charts import interval_curves, method_bars


def test_a_row_for_each_method_that_was_measured():
    metrics = {
        "ours": {"acc": {"mean": 0.5, "ci95": 0.1, "n": 3}, "miou": {"mean": 0.2, "ci95": None, "n": 1}},
        "other": {"acc": {"mean": 0.25, "ci95": 0.05, "n": 3}},
    }
    figure = method_bars(metrics, {"acc": "accuracy", "miou": "IoU", "absent": "nothing"})
    first, second = figure.axes
    assert [bar.get_width() for bar in first.patches] == [50.0, 25.0]
    assert [bar.get_width() for bar in second.patches] == [20.0]
    assert [label.get_text() for label in first.get_yticklabels()] == ["ours", "other"]
    assert first.get_title() == "accuracy"


def test_many_panels_take_several_rows_and_methods_without_them_none():
    value = {"mean": 0.5, "ci95": 0.1, "n": 3}
    metrics = {"ours": {f"m{i}": value for i in range(7)}, "other": {"else": value}}
    figure = method_bars(metrics, {f"m{i}": f"metric {i}" for i in range(7)})
    places = [axis.get_subplotspec().rowspan.start for axis in figure.axes]
    assert places == [0, 0, 0, 0, 0, 1, 1]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["ours"]


def test_lines_have_intervals_and_look_the_same_in_all_panels():
    ours, other = [(1, 0.2, 0.1), (10, 0.4, 0.0)], [(1, 0.1, 0.1), (10, 0.1, 0.1)]
    figure = interval_curves({"one": {"ours": ours, "other": other}, "two": {"other": other}}, "labels", log=True)
    one, two = figure.axes
    assert one.lines[0].get_ydata().tolist() == [20, 40] and one.get_xscale() == "log" and one.get_ylim()[0] == 0
    colours = [axis.containers[place].lines[0].get_color() for axis, place in ((one, 1), (two, 0), (one, 0))]
    assert colours[0] == colours[1] != colours[2]
    (bars,) = one.containers[0].lines[2]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[10, 30], [40, 40]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ours", "other"]
    assert not interval_curves({"one": {"ours": ours}}, "labels").legends
