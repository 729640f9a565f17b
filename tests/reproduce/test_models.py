"""Experiments in models: units, lines, tables, figures, on a tiny model."""

import functools

import pytest

import tn4nn as tn
from tn4nn._comparison import timing
from tn4nn._drawing.figure import new_figure
from tn4nn.reproduce import _models, gpt, vit
from tn4nn.reproduce._experiment import Settings

TEXT = tn.load_text("shakespeare")[:6000]


def task():
    return tn.language_model(TEXT, context=8)


RECIPE = _models.Recipe(
    model=functools.partial(tn.presets.gpt, layers=1, heads=2, vocab=task().outputs[-1], context=8),
    width=16,
    widths=(8, 16),
    where=("*.mlp",),
    steps=3,
    training={"batch_size": 4, "lr": 1e-3},
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Two shares and the ladder, of few topologies, with two seeds."""
    pytest.importorskip("torch")
    patch = pytest.MonkeyPatch()
    patch.setattr(timing, "ROUNDS", 2)
    patch.setattr(timing, "STEPS", 1)
    patch.setattr(_models, "TOPOLOGIES", ("low_rank", "mpo"))
    patch.setattr(_models, "SHARES", (0.5, 0.25))
    patch.setattr(_models, "installed_backends", lambda: ("torch",))
    units = _models.units(RECIPE, task, 3e6, Settings(False, "torch", None, 2))
    found = []
    for number, unit in enumerate(units):
        folder = tmp_path_factory.mktemp(f"unit{number}")
        first = unit.run(folder)
        again = unit.run(folder)  # out of its own finished cells
        assert again["cells"] == first["cells"]
        found.append({**unit.key, **first})
    patch.undo()
    return found


@pytest.mark.thorough
def test_units_are_comparisons_at_equal_parameters_and_at_equal_compute(rows):
    assert [(row["share"], "flops" in row) for row in rows] == [(0.5, False), (0.25, False), (0.25, True)]
    for row in rows[:2]:
        dense, *others = dict.fromkeys((cell["topology"], cell["budget"]) for cell in row["cells"])
        assert {budget for _, budget in others} == {row["share"] * dense[1]}
    assert {cell["width"] for cell in rows[2]["cells"]} == {8, 16}
    assert all(not {"step_ms", "step_vs_dense"} & set(cell) for row in rows for cell in row["cells"])


@pytest.mark.thorough
def test_scores_gains_tables_and_figures(rows):
    assert len(_models.scores(rows, "mpo", 0.25)) == 2
    line = _models.gain_line(rows, "mpo", 0.25, "torch", less=True)
    pairs = zip(_models.scores(rows, "narrow", 0.25), _models.scores(rows, "mpo", 0.25), strict=True)
    assert line.ours == pytest.approx(sum(a - b for a, b in pairs) / 2)
    width, values = _models.best_of_ladder(rows, "dense", "torch", less=True)
    other = _models.scores(rows, "dense", 0.25, flops=True, width=24 - width)
    assert sum(values) < sum(other)
    said = _models.tables(rows, less=True, digits=3)
    assert len(said) == 6
    assert said[0] == "At 0.5 of the layers' weights, equal steps, torch:"
    assert "| mpo" in said[1]
    assert said[2].startswith("Against the thinner dense model at this budget")
    figure = new_figure(None)
    _models.draw(figure, rows, "loss")
    assert len(figure.axes) == 2


@pytest.mark.parametrize("module", [gpt, vit])
def test_the_experiments_compute_as_much_as_their_dense_run(module):
    from tn4nn._model.rows import attention_macs, rows_of

    recipe = module.RECIPE
    dense = recipe.model(width=recipe.width)
    shape = dense.input_shape
    macs = attention_macs(dense, shape)
    for _, layer, rows in rows_of(dense, shape):
        if not isinstance(layer, tn.Embedding):
            macs += layer.solid().num_params * rows
    batch = recipe.training["batch_size"]
    assert pytest.approx(6 * macs * batch * recipe.steps, rel=0.01) == module.FLOPS


@pytest.mark.thorough
def test_lines_and_text_of_gpt_come_from_its_rows(rows):
    found = gpt.EXPERIMENT.lines(rows)
    assert any(line.what == "torch: mpo better than narrow, at 0.25 of the weights" for line in found)
    assert any("equal compute: mpo at its best width" in line.what for line in found)
    assert gpt.EXPERIMENT.text(rows)
    assert vit.EXPERIMENT.lines([{**row, "metric": "accuracy"} for row in rows])
