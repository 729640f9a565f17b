"""Thousands of changed files of every kind that tn4nn reads, and what comes of them.

    python -m tests.campaigns.mutations --count 3000

Each case takes a good file, changes it by a seeded draw, and reads it as a user would. What may come of it:

* **right**: what the good file gives (of a cache: it counted as absent, and was made again);
* **refused**: one of tn4nn's own errors;
* **other**: a valid file that says something else, where no digest can tell: texts that users write themselves, plain
  .npy files, and files that were forged with the digest that belongs to them. Of a forged one other networks must not
  notice anything, and its own plans must give the right numbers.

Everything else is a failure: **different** (something else without a word), **raw** (another exception), **signal**,
**slow** (more than 20 s).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .reports import finish

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest does
from campaigns import changes
from campaigns.changes import BYTES, Change, Rng

import tn4nn as tn
from tn4nn import reference, reproduce
from tn4nn._base import cache as _cache
from tn4nn._base import libraries
from tn4nn._base.private import private_folder
from tn4nn._base.seeds import rng_for
from tn4nn._base.version import installed_version
from tn4nn._comparison.rows import ROW_KEYS, Outcome
from tn4nn._comparison.store import Store
from tn4nn._graph import candidates as _candidates
from tn4nn._model import io as _io
from tn4nn._model.io import read_matrix
from tn4nn._planning import planner as _planner
from tn4nn._runtime import compiled, devices, processor
from tn4nn._runtime import native as _native
from tn4nn._runtime.program import Ops, run

GOOD = ("right", "refused", "other")
BAD = ("different", "raw", "signal", "slow")
LIMIT_S = 20
OPS = Ops(np.reshape, np.transpose, np.matmul, np.multiply, lambda a, axis, i: np.take(a, i, axis), np.concatenate)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: in the table.
        share: of all cases.
        path: of the good file, which each case puts a changed one in the place of.
        read: what a user gets of it, as a value that can be compared.
        changes: by name.
        others: how the names of changes begin after which something else may come without a word.
        partly: whether something that came is what the good file gives (default: equality).
    """

    name: str
    share: int
    path: Path
    read: Callable[[], Any]
    changes: Mapping[str, Change]
    others: tuple[str, ...] = ()
    partly: Callable[[Any, Any], bool] = lambda found, expected: found == expected


@dataclasses.dataclass(frozen=True)
class Case:
    """What came of one changed file."""

    kind: str
    number: int
    change: str
    outcome: str
    detail: str = ""


class _TooSlowError(BaseException):
    pass


def _alarm(*_: object) -> None:
    raise _TooSlowError


def cases_of(kind: Kind, count: int, seed: int) -> Iterator[Case]:
    """Changes a file so many times."""
    good = kind.path.read_bytes()
    expected = kind.read()
    assert kind.partly(kind.read(), expected), f"{kind.name}: a good file gives two things"
    names = list(kind.changes)
    for number in range(count):
        rng = rng_for(seed, kind.name, number)
        name = names[number % len(names)]
        outcome, detail = _outcome(kind, name, good, expected, rng)
        yield Case(kind.name, number, name, outcome, detail)
    kind.path.write_bytes(good)


def _outcome(kind: Kind, name: str, good: bytes, expected: Any, rng: Rng) -> tuple[str, str]:
    changed = kind.changes[name](good, rng)
    _put(kind.path, changed)
    signal.signal(signal.SIGALRM, _alarm)
    signal.alarm(LIMIT_S)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = kind.read()
    except tn.TN4NNError as error:
        return "refused", f"{type(error).__name__}: {error}"
    except _TooSlowError:
        return "slow", f"more than {LIMIT_S} s"
    except _SignalError as error:
        return "signal", str(error)
    except Exception as error:
        return "raw", f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.alarm(0)
    if kind.partly(found, expected):
        return "right", ""
    return ("other" if name.startswith(kind.others) else "different"), repr(found)[:200]


def _put(path: Path, content: bytes) -> None:
    if path.is_symlink() or path.exists():
        path.unlink()
    path.write_bytes(content)


class _SignalError(Exception):
    """A process ended with a signal."""


# -- the kinds ----------------------------------------------------------------------------------------------------

NET = tn.ring((4, 4), (4, 4)).with_rank(2)
VICTIM = tn.mpo((4, 4, 2), (4, 4, 2)).with_rank(3)
MODEL = tn.Sequential(tn.Linear(NET, ordering="hilbert"), tn.ReLU(), tn.BatchNorm(16), last=tn.Linear(16, 3))


def digest(arrays: Mapping[str, Any]) -> str:
    """Of arrays by name."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()[:16]


def _store(folder: Path | None = None) -> _cache.PlanCache:
    """An empty store of plans for what is read next."""
    store = _cache.PlanCache(folder or Path(tempfile.mkdtemp(dir=os.environ["TN4NN_CACHE"])))
    for module, name in ((_planner, "_store"), (_candidates, "_store"), (_io, "plans")):
        setattr(module, name, store)
    return store


def _records(change: Callable[[Any, Any, Rng], tuple[Any, Any]], seal: bool, path: Path) -> Change:
    """A change of a record or its arrays, with a digest that is right or as it was."""

    def changed(data: bytes, rng: Rng) -> bytes:
        path.write_bytes(data)
        record, arrays = change(*changes.parts_of(path), rng)
        return (changes.forged if seal else changes.whole)(record, arrays)

    return changed


def often(name: str, change: Change, times: int) -> dict[str, Change]:
    """A change that comes more often than the others: it has more to choose from."""
    return {f"{name} {number}": change for number in range(times)}


def record_changes(path: Path) -> dict[str, Change]:
    """Of a safetensors file with a record."""
    return {
        **BYTES,
        **often("edited record", _records(lambda r, a, rng: (changes.edited(r, rng), a), False, path), 2),
        "changed arrays": _records(lambda r, a, rng: (r, changes.changed_arrays(a, rng)), False, path),
        **often("forged record", _records(lambda r, a, rng: (changes.edited(r, rng), a), True, path), 8),
        **often("forged arrays", _records(lambda r, a, rng: (r, changes.changed_arrays(a, rng)), True, path), 3),
    }


def _plans_edited(record: Any, arrays: Any, rng: Rng) -> tuple[Any, Any]:
    """The plans of a model file with something wrong, or under the name of another network."""
    plans = record["plans"]
    (owner,) = plans
    if rng.integers(3) == 0:
        plans = {VICTIM.fingerprint: {**plans[owner], **_plans_edited.asked}}  # type: ignore[attr-defined]
        return {**record, "plans": {**record["plans"], **plans}}, arrays
    key = list(plans[owner])[int(rng.integers(len(plans[owner])))]
    entry = dict(plans[owner][key])
    field = list(entry)[int(rng.integers(len(entry)))]
    strange = [*changes.STRANGE, [[0, 1], [2, 3]], ["y0"], ["a0", "a1"], ["x0"], 7, [4, 4], [[1, 0], [3, 2]]]
    entry[field] = strange[int(rng.integers(len(strange)))]
    return {**record, "plans": {owner: {**plans[owner], key: entry}}}, arrays


def model_files(folder: Path) -> Kind:
    """Files of models, with plans in them."""
    path, weights = folder / "model.safetensors", MODEL.init(0)
    _store()
    asked = [
        {"runtime": runtime, "phase": phase} for runtime in ("program", "native") for phase in ("forward", "train")
    ]
    for how in asked:
        tn.plan(NET, 37, **how)
    victim = [tn.plan(VICTIM, 37, **how) for how in asked]
    poison = _planner._store.owned({VICTIM.fingerprint})[VICTIM.fingerprint]
    wrong = {"block": 10**9, "sliced": ["y0"], "path": [[9, 9]]}
    _plans_edited.asked = {key: {**entry, **wrong} for key, entry in poison.items()}  # type: ignore[attr-defined]
    tn.save(path, MODEL, weights)
    x = np.random.default_rng(0).standard_normal((5, NET.in_features))
    cores = NET.init(0)
    y = reference.apply(NET, cores, x)

    def read() -> Any:
        _store()
        model, found = tn.load(path)
        assert [tn.plan(VICTIM, 37, **how) for how in asked] == victim, "another network's plans have changed"
        for how in asked:
            p = tn.plan(NET, 37, **how)
            received = run(OPS, p.program, [*cores.values(), x])
            assert np.allclose(received, y, atol=1e-5), "a plan gives wrong numbers"
            assert p.cost.macs > 0
            if how["runtime"] == "native":
                assert p.recipe.block <= 37
        return model.to_dict(), digest(found)

    how = record_changes(path) | often("forged plans", _records(_plans_edited, True, path), 12)
    return Kind("models", 500, path, read, how, ("forged record", "forged arrays"))


def network_files(folder: Path) -> Kind:
    """Files of one network: small, so that more of their bytes matter."""
    path, net = folder / "network.safetensors", tn.low_rank(3, 2).with_rank(1)
    _store()
    tn.save(path, net, net.init(0))

    def read() -> Any:
        _store()
        found, weights = tn.load(path)
        return found.to_dict(), digest(weights)

    return Kind("networks", 150, path, read, record_changes(path), ("forged record", "forged arrays"))


def checkpoints(folder: Path) -> Kind:
    """Checkpoints: what the run gives that goes on from them."""
    path = folder / "run.safetensors"
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 16)).astype(np.float32)
    data = x, (x[:, 0] > 0).astype(np.int64)
    options: dict[str, Any] = {"epochs": 3, "batch_size": 8, "checkpoint_every": 3, "validation": 0.2, "lr": 1e-2}
    model = tn.Sequential(tn.Linear(NET), tn.ReLU(), tn.Linear(16, 2))

    def stop(epoch: Any, trainer: Any) -> None:
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        tn.train(model, data, checkpoint=path, callback=stop, **options)
    good = path.read_bytes()

    def read() -> Any:
        found = tn.train(model, data, checkpoint=path, **options)
        history = [dataclasses.astuple(line)[:4] for line in found.history]
        return digest(found.weights), digest(found.best_weights), found.losses.tolist(), history

    path.write_bytes(good)
    return Kind("checkpoints", 350, path, _from(path, read), record_changes(path), ("forged record", "forged arrays"))


def _from(path: Path, read: Callable[[], Any]) -> Callable[[], Any]:
    """Reads a file that the reading changes; it is put back."""

    def reading() -> Any:
        before = path.read_bytes()
        try:
            return read()
        finally:
            path.write_bytes(before)

    return reading


def rows(folder: Path) -> Kind:
    """The finished rows of a sweep."""
    path = folder / "rows.jsonl"
    store = Store(path, resume=False)
    for number in range(4):
        store.add(f"lr-{number:016x}", {"lr": 10.0**-number})
        row = dict.fromkeys(ROW_KEYS, 1) | {"topology": "mpo", "status": "ok", "reason": ""}
        row["metrics"] = {"accuracy": 90.0 + number}
        store.add(f"{number:016x}", row)

    def read() -> Any:
        found = Store(path, resume=True)
        for key, value in found.done.items():
            _ = float(value["lr"]) if key.startswith("lr-") else Outcome.of_row(value)
        found.add("more", {"lr": 1.0})
        again = Store(path, resume=True).done
        assert again.pop("more") == {"lr": 1.0}
        assert again == {key: value for key, value in found.done.items() if key != "more"}
        return again

    def is_part(found: Any, expected: Any) -> bool:  # what is missing runs again
        return all(expected.get(key) == value for key, value in found.items())

    how = {**BYTES, **often("edited line", changes.edited_line, 8)}
    return Kind("rows", 400, path, _from(path, read), how, partly=is_part)


def plan_entries(folder: Path) -> Kind:
    """Entries of the store of plans."""
    place = folder / "plans"
    store = _store(place)
    tn.plan(NET, 41, "train")
    (path,) = store.folder.glob("*.json")

    def read() -> Any:
        _store(place)
        p = tn.plan(NET, 41, "train")
        return p, str(p.program)

    how = {**BYTES, **often("edited", changes.edited_json, 5), **often("forged", _sealed_json, 5)}
    return Kind("plans", 450, path, _from(path, read), how, ("forged",), partly=_same_plan)


def _same_plan(found: Any, expected: Any) -> bool:
    return bool(found == expected)


def _sealed_json(data: bytes, rng: Rng) -> bytes:
    edited = changes.edited(json.loads(data), rng)
    try:
        return json.dumps(changes.sealed(edited)).encode()
    except Exception:  # no object, or nested too deep
        return changes.text_of(edited).encode()


def machines(folder: Path) -> Kind:
    """Stored parameters of the cost model."""
    devices.store("native", "cpu", "float32", {"schema": 1, "machine": dataclasses.asdict(tn.Machine(tile_s=3e-7))})
    path = devices._file("native", "cpu", "float32")

    def read() -> Any:
        devices._read.cache_clear()
        return devices.native_machine(4)

    default = tn.Machine(vector_bytes=processor.vector_bytes())
    how = {**BYTES, **often("edited", changes.edited_json, 5), **often("forged", _sealed_json, 5)}
    return Kind("machines", 200, path, read, how, ("forged",), partly=lambda found, good: found in (good, default))


def results(folder: Path) -> Kind:
    """Results of the reproduction: what the page shows of them, and what a run goes on from."""
    place = folder / "reproduction"
    reproduce.run("counts", out=place)
    path = place / "counts.json"

    def read() -> Any:
        page = reproduce.write_page(place, folder / "page.md").read_text()
        record = reproduce.run("counts", out=place)
        return page, record["rows"], record["lines"]

    how = {**BYTES, **often("edited", changes.edited_json, 5)}
    return Kind("results", 150, path, _from(path, read), how)


def search_states(folder: Path) -> Kind:
    """States of a search."""
    path = folder / "state"
    target = tn.ring((2, 2), (2, 2)).with_rank(2)
    w = target.to_dense(target.init(0))
    options: dict[str, Any] = {"inputs": (2, 2), "outputs": (2, 2), "error": 1e-3, "state": path}
    tn.search(w, evaluations=3, **options)

    def read() -> Any:
        found = tn.search(w, evaluations=4, **options)
        return [(one.structure, one.error) for one in found.history]

    how = record_changes(path)
    return Kind("searches", 100, path, _from(path, read), how, ("forged record", "forged arrays"))


TOML = """[mine]
cores = "x0 y0 a, x1 y1 a b, b c, c y2"
inputs = {x0 = 8, x1 = 8}
outputs = {y0 = 4, y1 = 4, y2 = 2}

[other]
cores = "x y"
inputs = {x = 64}
outputs = {y = 32}
head = {cores = "x y", inputs = {x = 32}, outputs = {y = 10}}
"""


def topology_files(folder: Path, ending: str) -> Kind:
    """Topologies that users write."""
    path = folder / f"topologies.{ending}"
    path.write_text(TOML)
    given = tn.read_topologies(path) if ending == "toml" else None
    if given is None:
        entry = {"cores": "x0 y0 a, x1 y1 a", "inputs": {"x0": 8, "x1": 8}, "outputs": {"y0": 4, "y1": 4}}
        path.write_text(json.dumps({"mine": entry}))

    def read() -> Any:
        return [repr(one) for one in tn.read_topologies(path)]

    how = {**BYTES, **often("edited", changes.edited_json, 20 if ending == "json" else 0)}
    return Kind(f"topologies ({ending})", 150, path, read, how, ("",))


def data_of_models(folder: Path) -> Kind:
    """A model as JSON."""
    path = folder / "model.json"
    path.write_text(json.dumps({"model": MODEL.to_dict()}))

    def read() -> Any:
        model = tn.model_from_json(path.read_bytes().decode(errors="replace"))
        return model.to_dict()

    return Kind("models as text", 150, path, read, {**BYTES, **often("edited", changes.edited_json, 20)}, ("",))


def networks_as_text(folder: Path) -> Kind:
    """A network as JSON."""
    path = folder / "network.json"
    path.write_text(NET.to_json())

    def read() -> Any:
        return tn.Network.from_json(path.read_bytes().decode(errors="replace")).to_dict()

    return Kind("networks as text", 150, path, read, {**BYTES, **often("edited", changes.edited_json, 20)}, ("",))


def notations(folder: Path) -> Kind:
    """The text notation of cores."""
    path = folder / "cores.txt"
    path.write_text("x0 y0 a, x1 y1 a b, b c, c y2")

    def read() -> Any:
        text = path.read_bytes().decode(errors="replace")
        return repr(tn.topology(text, {"x0": 4, "x1": 4}, {"y0": 2, "y1": 2, "y2": 2}))

    return Kind("notations", 150, path, read, BYTES, ("",))


def npz_files(folder: Path, packed: bool) -> Kind:
    """Data sets of one's own."""
    path = folder / f"data-{packed}.npz"
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 3, 4)).astype(np.float32), rng.integers(0, 3, 40)
    (np.savez_compressed if packed else np.savez)(path, x=x, y=y)

    def read() -> Any:
        found = tn.load_data(path)
        return digest({name: getattr(found, name) for name in ("x_train", "y_train", "x_test", "y_test")})

    return Kind(f"data ({'packed ' if packed else ''}npz)", 150, path, read, BYTES)


def matrices(folder: Path, ending: str) -> Kind:
    """Matrices to decompose."""
    path = folder / f"w.{ending}"
    w = np.random.default_rng(0).standard_normal((6, 8))
    if ending == "npy":
        np.save(path, w)
    else:
        path.write_bytes(changes.save({"w": w, "b": w[0]}))

    def read() -> Any:
        return digest({"w": read_matrix(path, "w")})

    return Kind(f"matrices ({ending})", 150, path, read, BYTES, ("",))


CHILD = """
import os, sys
from tn4nn._runtime import native
found = native.kernel(4)  # it checks its numbers against numpy's
sys.stdout.write(found.variant if found.library is not None else "none")
"""


def library_files(folder: Path) -> Kind | None:
    """A kernel that the user has compiled, in the cache, in processes of their own: one that is changed gives way."""
    found = _native.kernel(4)
    if found.path is None:
        return None
    home = folder / "home"
    environment = {**os.environ, "TN4NN_CACHE": str(home)}

    def child() -> str:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", CHILD], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode < 0:
            raise _SignalError(signal.Signals(-done.returncode).name)
        if done.returncode:
            raise RuntimeError(done.stderr[-300:])
        return done.stdout

    kept = found.path.read_bytes()
    path = libraries._stored(private_folder(home / "kernels") / compiled._name(4, ()), kept)
    assert child() == "native"
    beside = path.with_suffix(".sha256").read_bytes()

    def read() -> Any:
        if not path.with_suffix(".sha256").exists() or path.with_suffix(".sha256").read_bytes() != beside:
            libraries.write_private(path.with_suffix(".sha256"), beside)
        variant = child()  # one that is not used gives way to the package's
        return variant != "none", variant != "native" or path.read_bytes() == kept

    return Kind("libraries", 60, path, read, BYTES)


def extension_files(folder: Path) -> Kind:
    """Any other library of the cache: whether it would be loaded."""
    path = libraries._stored(libraries.library_path("calls-of-the-campaign.so"), bytes(range(256)) * 64)
    good = path.read_bytes()

    def read() -> Any:
        path.chmod(0o600)
        return not libraries.is_whole(path) or path.read_bytes() == good

    return Kind("extensions", 100, path, read, BYTES)


KINDS: tuple[Callable[[Path], Kind | None], ...] = (
    model_files,
    network_files,
    checkpoints,
    rows,
    plan_entries,
    results,
    search_states,
    lambda folder: topology_files(folder, "toml"),
    lambda folder: topology_files(folder, "json"),
    data_of_models,
    networks_as_text,
    notations,
    lambda folder: npz_files(folder, False),
    lambda folder: npz_files(folder, True),
    lambda folder: matrices(folder, "npy"),
    lambda folder: matrices(folder, "safetensors"),
    library_files,
    extension_files,
    machines,  # the last: the others plan with the parameters that are stored here
)
SHARES = 3_760  # their sum


# -- the campaign -------------------------------------------------------------------------------------------------


def campaign(count: int, seed: int = 0, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Runs about so many cases, shared out among the kinds of files; returns the record of what came."""
    begin, counts, failures = time.monotonic(), {}, []
    stores = _planner._store, _candidates._store, _io.plans
    before = os.environ.get("TN4NN_CACHE")
    with tempfile.TemporaryDirectory(prefix="tn4nn-campaign-") as place:
        os.environ["TN4NN_CACHE"] = str(Path(place) / "cache")
        (Path(place) / "cache").mkdir()
        _native.kernel.cache_clear()
        try:
            for number, make in enumerate(KINDS):
                (Path(place) / str(number)).mkdir()
                kind = make(Path(place) / str(number))
                if kind is None:
                    continue
                cases = list(cases_of(kind, -(-count * kind.share // SHARES), seed))
                counts[kind.name] = dict(Counter(case.outcome for case in cases))
                failures += [dataclasses.asdict(case) for case in cases if case.outcome in BAD]
                say(f"{kind.name}: {counts[kind.name]}")
        finally:
            _native.kernel.cache_clear()
            devices._read.cache_clear()
            _planner._store, _candidates._store, _io.plans = stores
            if before is None:
                del os.environ["TN4NN_CACHE"]
            else:
                os.environ["TN4NN_CACHE"] = before
    return {
        "schema": 1,
        "command": f"python -m tests.campaigns.mutations --count {count} --seed {seed}",
        "versions": {
            "tn4nn": installed_version(), "python": platform.python_version(), "numpy": np.__version__,
            "platform": platform.system(),
        },
        "seconds": round(time.monotonic() - begin, 1),
        "cases": sum(sum(found.values()) for found in counts.values()),
        "failed": len(failures),
        "counts": counts,
        "failures": failures,
    }  # fmt: skip


def table(record: Mapping[str, Any]) -> str:
    """The counts as text."""
    columns = [*GOOD, *BAD]
    lines = [f"{'file':<24}" + "".join(f"{name:>11}" for name in columns)]
    for kind, found in record["counts"].items():
        lines.append(f"{kind:<24}" + "".join(f"{found.get(name, 0):>11,}" for name in columns))
    sums = [sum(found.get(name, 0) for found in record["counts"].values()) for name in columns]
    lines.append(f"{'all':<24}" + "".join(f"{number:>11,}" for number in sums))
    lines += [f"FAILED {one['kind']} {one['number']} ({one['change']}): {one['detail']}" for one in record["failures"]]
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Changes files that tn4nn reads, and counts what comes of it.")
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    given = parser.parse_args()
    record = campaign(given.count, given.seed, lambda line: sys.stderr.write(line + "\n"))
    finish(record, bool(record["failed"]), given.json, table(record))


if __name__ == "__main__":
    main()
