"""All pages of results and their figures, out of the files of results: after a change of their form.

python benchmarks/render_pages.py --out docs/pages/benchmarks
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parent))

import render_performance

# page -> file of results
STEP_TIMES = {
    "performance": "step_time.json",
    "performance-2-threads": "step_time_quick_2_threads.json",
    "performance-gpu": "gpu/step_time.json",
    "performance-gpu-bf16": "gpu/step_time_bf16.json",
}
# page -> (script, file of results)
OTHERS = {
    "threads": ("threads", "threads.json"),
    "decoding": ("decoding", "decoding.json"),
    "einsum-peers": ("einsum", "einsum.json"),
    "einsum-peers-2-threads": ("einsum", "einsum_2_threads.json"),
    "contraction": ("contraction", "contraction.json"),
    "decomposition-peers": ("decomposition", "decomposition.json"),
    "minilm": ("minilm", "minilm.json"),
}


def pages(results: Path, out: Path, *, figures: bool = True) -> list[Path]:
    """Writes the pages; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, file in STEP_TIMES.items():
        data = render_performance.read(results / file)
        page = out / f"{name}.md"
        page.write_text(render_performance.page(data, f"benchmarks/results/{file}", f"{name}.png"))
        if figures:
            render_performance.draw(data, page.with_suffix(".png"))
        written.append(page)
    for name, (script, file) in OTHERS.items():
        module, page = importlib.import_module(script), out / f"{name}.md"
        data = json.loads((results / file).read_text())
        page.write_text(module.page(data))
        if figures:
            module.draw(data, page.with_suffix(".png"))
        written.append(page)
    page = out / "plans.md"
    page.write_text(render_performance.plans_page(results))
    return [*written, page]


def main(
    out: Annotated[Path, typer.Option(help="Folder of the pages.")] = Path("docs/pages/benchmarks"),
) -> None:
    """Writes all pages of results."""
    for page in pages(Path(__file__).parent / "results", out):
        typer.echo(page)


if __name__ == "__main__":
    typer.run(main)
