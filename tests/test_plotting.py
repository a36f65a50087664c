"""Lines that can be told apart, however many there are."""

import io

import numpy as np
from matplotlib.figure import Figure

from maxpo.plotting import STYLES, draw_line, legend_below, styles

MANY = [
    *(f"maxpo k={k}" for k in range(1, 41)),
    *(f"rloo learning_rate={rate}" for rate in range(9)),
    *STYLES,
    *(f"method_{number}" for number in range(30)),
    *(f"method_0 k={k}" for k in range(9)),
]


def test_the_first_of_an_estimator_looks_as_everywhere():
    lines = styles(list(STYLES))
    assert {name: line["linestyle"] for name, line in lines.items()} == {
        name: dashes for name, (_, dashes) in STYLES.items()
    }
    assert all(line["marker"] == "" for line in lines.values())
    assert styles(["rloo", "maxpo k=8"])["maxpo k=8"] == lines["maxpo"]
    assert styles([]) == {}


def test_any_number_of_methods_can_be_told_apart():
    lines = styles(MANY)
    assert list(lines) == MANY
    looks = [(line["color"], line["linestyle"], line["marker"]) for line in lines.values()]
    assert len(set(looks)) == len(MANY)
    for color, dashes, _ in looks:
        assert max(color) - min(color) > 0.05 or max(color) < 0.95  # never white
        if not isinstance(dashes, str):
            assert min(dashes[1]) > 0
    # Not only shades, which saturate: of one estimator no two have the same dashes and marker.
    own = [looks[number][1:] for number in range(40)]
    assert len(set(own)) == 40


def test_they_can_be_drawn():
    figure = Figure(layout="constrained")
    axis = figure.subplots()
    for number, (label, style) in enumerate(styles(MANY).items()):
        y = np.array([number, number + 1.0])
        draw_line(axis, [0, 1], y, y - 1, y + 1, label, style)
    legend_below(figure, axis)
    figure.savefig(io.BytesIO(), format="png")
