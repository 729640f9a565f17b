"""What a notebook shows of a value: its text, and a picture where there is one."""

from __future__ import annotations

import html
from collections.abc import Callable

from .errors import TN4NNError


def shown(text: str, svg: Callable[[], str] | None = None) -> str:
    """HTML of a text in columns, and of a picture below it where matplotlib is installed.

    Examples:
        >>> shown("a < b")
        '<pre style="line-height: 1.2">a &lt; b</pre>'
    """
    picture = ""
    if svg is not None:
        try:
            picture = svg()
        except (TN4NNError, ImportError):  # without matplotlib
            picture = ""
    return f'<pre style="line-height: 1.2">{html.escape(text)}</pre>{picture}'
