"""Tasks: splits, what is read of them, and that both backends see the same."""

import re

import numpy as np
import pytest
from helpers import small_data

import tn4nn as tn
from tn4nn._training.splits import Arrays, Columns, Subset, Windows, is_mapped
from tn4nn._training.tasks import classification

TEXT = "to be or not to be, that is the question; " * 80


class Table:
    """What a `datasets.Dataset` looks like to us."""

    def __init__(self, **columns):
        self.columns, self.reads = columns, []
        self.column_names = list(columns)

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.columns[key]
        self.reads.append(key)
        if isinstance(key, int):
            return {name: values[key] for name, values in self.columns.items()}
        return {name: [values[i] for i in key] for name, values in self.columns.items()}

    def __iter__(self):
        return (self[i] for i in range(len(self)))


def both():
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    return "torch", "jax"


def language_network(task, width=16):
    vocabulary = task.outputs[-1]
    return tn.Sequential(tn.Embedding(vocabulary, width), tn.Linear(tn.mpo((4, 4), (4, 4)).with_rank(4)), tn.GELU(),
                         tn.Linear(width, vocabulary))  # fmt: skip


# -- classification and regression ----------------------------------------------------------------------------------


def test_arrays_iterables_datasets_and_tables_are_one_task():
    x, y = small_data(60)
    pairs = [(x[:20], y[:20]), (x[20:], y[20:])]
    dataset = tn.Dataset("mine", x, y, x[:9], y[:9], 3, (16,))
    table = Table(image=list(x), label=y.tolist())
    for task in (tn.classification(x, y), tn.classification(iter(pairs)), tn.classification(dataset),
                 tn.classification(table)):  # fmt: skip
        assert (task.inputs, task.outputs, task.metric, task.larger_is_better) == ((16,), (3,), "accuracy", True)
        found = task.train.take(np.array([5, 40]))
        assert np.array_equal(found[0], x[[5, 40]])
        assert np.array_equal(found[1], y[[5, 40]])
    assert len(tn.classification(dataset).test) == 9


def test_rows_of_a_table_are_read_when_they_are_needed_and_give_the_same_run():
    x, y = small_data(60)
    table = Table(image=list(x), label=y.tolist())
    model = tn.Sequential(tn.Linear(16, 8), tn.ReLU(), tn.Linear(8, 3))
    task = tn.classification(table)
    table.reads.clear()
    runs = [tn.train(model, data, epochs=2, batch_size=20, seed=1) for data in (task, (x, y))]
    assert np.allclose(runs[0].losses, runs[1].losses, atol=1e-6)
    assert runs[0].accuracy == runs[1].accuracy
    assert max(map(len, (key for key in table.reads if isinstance(key, list)))) <= 60


def test_pictures_of_bytes_become_numbers_from_0_to_1():
    pictures = [np.full((2, 2), value, np.uint8) for value in (0, 51, 255)]
    x, _ = Columns(Table(image=pictures, label=[0, 1, 2]), ("image", "label")).take(np.arange(3))
    assert x.dtype == np.float32
    assert x[:, 0, 0].tolist() == pytest.approx([0, 0.2, 1])


def test_a_mapped_array_is_not_read_at_once(tmp_path):
    x, y = small_data(60)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    task = tn.classification(mapped, y)
    assert task.train.whole() is None
    assert is_mapped(task.train.x[10:20])
    model = tn.Sequential(tn.Linear(16, 8), tn.ReLU(), tn.Linear(8, 3))
    runs = [tn.train(model, data, epochs=1, batch_size=20) for data in (task, (x, y))]
    assert np.allclose(runs[0].losses, runs[1].losses, atol=1e-6)


@pytest.mark.slow
def test_regression_is_scored_by_its_error(trained_backend):
    x, _ = small_data(120)
    task = tn.regression(x, x[:, 0] ** 2, test=(x[:30], x[:30, 0] ** 2))
    assert (task.outputs, task.loss, task.larger_is_better) == ((1,), "mse", False)
    model = tn.Sequential(tn.Linear(16, 32), tn.ReLU(), tn.Linear(32, 1))
    run = tn.train(model, task, backend=trained_backend, epochs=25, batch_size=20, lr=1e-2)
    losses = [line.validation_loss for line in run.history]
    assert run.best_epoch == 1 + int(np.argmin(losses))
    assert np.isnan(run.test_accuracy)
    found = model.build("numpy", run.weights)(x[:30])
    assert run.test_loss == pytest.approx(float(((found[:, 0] - x[:30, 0] ** 2) ** 2).mean()), rel=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, y: tn.classification(x, y[:-1]), "x has shape (60, 16), y (59,): expected one y for each row"),
        (lambda x, y: tn.classification(x, y.astype(float)), "expected whole-number labels of shape (rows,), received"),
        (lambda x, y: tn.classification(x, y - 1), "expected labels from 0 on, received -1 in row"),
        (lambda x, y: tn.classification(x, y, classes=2), "the largest label is 2, but classes=2"),
        (lambda x, y: tn.classification(x[:0], y[:0]), "training data: expected at least one row, received none"),
        (lambda x, y: tn.classification(Table(a=[1])), "no column 'image' among a: name those of x and y (columns=)"),
        (lambda x, y: tn.classification(7), "expected (x, y), a table with columns, or an iterable of pairs"),
        (lambda x, y: tn.classification(None), "training data: expected x and y, received None"),
        (lambda x, y: tn.train(tn.Linear(16, 2), tn.classification(x, y), epochs=1), "the task 3 classes"),
        (lambda x, y: tn.train(tn.Linear(16, 2), tn.classification(Table(image=list(x), label=y))), "as many"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(make, message):
    with pytest.raises(tn.DataError, match=re.escape(message)):
        make(*small_data(60))


# -- texts ----------------------------------------------------------------------------------------------------------


def test_windows_take_every_token_of_an_epoch_once():
    windows = Windows(np.arange(101), 8)
    for seed in range(20):
        numbers = windows.numbers(np.random.default_rng(seed))
        x, y = windows.take(numbers)
        assert x.shape == y.shape == (len(windows), 8)
        assert np.array_equal(y, x + 1)
        assert len(np.unique(x)) == x.size
    assert windows.take(windows.numbers())[0].ravel().tolist() == list(range(96))


def test_characters_bytes_ids_and_files_are_the_same_text(tmp_path):
    task = tn.language_model(TEXT, context=16)
    assert task.vocabulary == "".join(sorted(set(TEXT)))
    ids = np.array([task.vocabulary.index(one) for one in TEXT])
    (tmp_path / "a.txt").write_text(TEXT)
    np.save(tmp_path / "a.npy", ids.astype(np.uint8))
    ids.astype("<u2").tofile(tmp_path / "a.bin")
    table = Table(input_ids=[ids[:700].tolist(), ids[700:].tolist()])
    others = [tmp_path / "a.txt", tmp_path / "a.npy", tmp_path / "a.bin", ids, [ids[:70], ids[70:]], table]
    for other in others:
        found = tn.language_model(other, context=16)
        assert np.array_equal(found.train.ids, task.train.ids)
        assert (found.inputs, found.outputs) == (task.inputs, task.outputs)
    assert is_mapped(tn.language_model(tmp_path / "a.bin", context=16).train.ids)
    assert tn.language_model(TEXT.encode(), context=16).outputs == (16, 256)
    parts = [task.train, task.validation, task.test]
    assert "".join(task.vocabulary[i] for part in parts for i in part.ids) == TEXT


@pytest.mark.slow
def test_backends_follow_each_other_and_resume_on_a_text(tmp_path):
    task = tn.language_model(TEXT, context=16)
    options = {"steps": 60, "evaluate_every": 25, "batch_size": 4, "lr": 1e-2, "optimizer": "adamw"}
    model = language_network(task)
    runs = [tn.train(model, task, backend=name, **options) for name in both()]
    assert np.abs(runs[0].losses - runs[1].losses).max() <= 1e-4
    assert [line.step for line in runs[0].history] == [25, 50, 60]
    assert runs[0].test_loss == pytest.approx(runs[1].test_loss, rel=1e-4)

    class StopError(Exception):
        pass

    def stop(epoch, trainer):
        raise StopError

    path = tmp_path / "run.safetensors"
    with pytest.raises(StopError):
        tn.train(model, task, checkpoint=path, checkpoint_every=10, callback=stop, **options)
    again = tn.train(model, task, checkpoint=path, checkpoint_every=10, **options)
    assert np.array_equal(again.losses, runs[0].losses)
    assert [line.step for line in again.history] == [25, 50, 60]


@pytest.mark.cases(1)
def test_the_loss_of_a_text_is_that_of_the_oracle(trained_backend):
    task = tn.language_model(TEXT, context=16)
    model = language_network(task)
    run = tn.train(model, task, backend=trained_backend, steps=3, batch_size=4)
    x, y = task.test.take(task.test.numbers())
    logits = model.build("numpy", run.weights)(x)
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert run.test_loss == pytest.approx(-np.take_along_axis(log, y[..., None], -1).mean(), rel=1e-5)
    assert run.test_accuracy == pytest.approx(100 * (logits.argmax(-1) == y).mean(), abs=0.5)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (TEXT, {"context": 400}, "tokens for validation are fewer than one window of context=400"),
        (TEXT, {"context": 0}, "context must be a whole number of at least 1, received 0"),
        (TEXT, {"context": 8, "vocabulary": "tobe"}, "the character ' ' at 2 is not in the vocabulary of 4 characters"),
        (TEXT, {"context": 8, "vocabulary": 5}, "expected vocabulary= as a string of them, received 5"),
        ("", {"context": 8}, "expected a text, received none"),
        (np.arange(500), {"context": 8, "vocabulary": 400}, "token id 499 is out of range: expected ids from 0 to 399"),
        (np.arange(500) - 1, {"context": 8}, "token id -1 is out of range"),
        (np.arange(500.0), {"context": 8}, "expected token ids as whole numbers of shape (tokens,), received float64"),
        (TEXT, {"context": 8, "shares": (0.5, 0.1, 0.1)}, "shares must be three numbers that add up to 1"),
        (Table(a=[1]), {"context": 8}, "no column 'input_ids' among a"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_text_is_said(given, options, message):
    with pytest.raises(tn.DataError, match=re.escape(message)):
        tn.language_model(given, **options)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"no")
    for path in (tmp_path / "a.npy", tmp_path / "none.txt", tmp_path / "none.bin"):
        with pytest.raises(tn.DataError, match="cannot be read"):
            tn.language_model(path, context=8)


def test_texts_by_name(monkeypatch, tmp_path):
    assert len(tn.load_text("shakespeare")) == 278_577
    with pytest.raises(tn.DataError, match="Did you mean 'shakespeare'"):
        tn.load_text("shakespear")
    monkeypatch.setenv("TN4NN_DATA", str(tmp_path))
    monkeypatch.setenv("TN4NN_CACHE", str(tmp_path))
    with pytest.raises(tn.DataError, match="put it there"):
        tn.load_text("tinyshakespeare")
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare" / "input.txt").write_text("First Citizen")
    with pytest.raises(tn.DataError, match="is not the published file"):
        tn.load_text("tinyshakespeare")


def test_a_subset_and_fingerprints():
    x, y = small_data(60)
    part = Subset(Arrays(x, y), np.array([4, 2, 9]))
    assert np.array_equal(part.take(np.array([0, 2]))[0], x[[4, 9]])
    tasks = [classification(x, y), classification(x, y), classification(x + 1, y), tn.language_model(TEXT, context=8)]
    found = [task.fingerprint for task in tasks]
    assert found[0] == found[1]
    assert len(set(found)) == 3
