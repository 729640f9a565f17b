"""Tables as text: for a terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """Columns that are as wide as their widest cell, two spaces apart.

    Args:
        head: what is above each column.
        rows: the cells of each line.
        left: so many columns are set to the left, the others (numbers) to the right.

    Examples:
        >>> print(text_table(("name", "params"), [("mpo", "1,500"), ("dense", "4,736")]))
        name   params
        mpo     1,500
        dense   4,736
    """
    lines = [tuple(head), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of GitHub's Markdown.

    Examples:
        >>> print(markdown_table(("name", "params"), [("mpo", 1500)]))
        | name | params |
        |--|--|
        | mpo | 1500 |
    """
    lines = [f"| {' | '.join(map(str, row))} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|--" * len(head) + "|", *lines[1:]])


def folded(summary: str, text: str) -> str:
    """Markdown that a reader unfolds, on GitHub and on the site.

    Examples:
        >>> print(folded("3 rows", "..."))
        <details markdown="1"><summary>3 rows</summary>
        <BLANKLINE>
        ...
        <BLANKLINE>
        </details>
    """
    return f'<details markdown="1"><summary>{summary}</summary>\n\n{text}\n\n</details>'
