"""How much memory may be used, asked before it is."""

from __future__ import annotations

import functools
import os

from .errors import BudgetError


@functools.cache
def usable_memory() -> int:
    """Bytes that one array or one step may take: half of what the machine has."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):  # no POSIX
        return 2**32


def check_memory(need: int, what: str, advice: str, limit: int | None = None) -> None:
    """Refuses what would need more bytes than may be used, before any of them is asked for.

    Args:
        need: bytes.
        what: needs them, for the error.
        advice: what would do.
        limit: bytes that may be used; None for `usable_memory`.

    Raises:
        BudgetError: with `smallest`, the bytes that are needed.

    Examples:
        >>> check_memory(10**18, "W", "ask for less")
        Traceback (most recent call last):
            ...
        tn4nn.BudgetError: W needs about 1,000,000,000,000,000,000 bytes, ... may be used: ask for less
    """
    most = usable_memory() if limit is None else limit
    if need > most:
        raise BudgetError(f"{what} needs about {need:,} bytes, {most:,} may be used: {advice}", need)
