"""What a notebook shows of a value: its text, and a picture where there is one."""

from __future__ import annotations

import html


def shown(text: str, svg: str | None = None) -> str:
    """HTML of a text in columns, and of a picture below it.

    Examples:
        >>> shown("a < b")
        '<pre style="line-height: 1.2">a &lt; b</pre>'
    """
    return f'<pre style="line-height: 1.2">{html.escape(text)}</pre>{svg or ""}'
