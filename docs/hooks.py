"""What the site does to a page before it is rendered."""

from __future__ import annotations

import os
import re
from typing import Any

_LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)\s]+)\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Links to files of the repository that are no part of the site lead to the repository."""
    folder = os.path.dirname(page.file.abs_src_path)
    pages = os.path.abspath(config["docs_dir"])
    root = os.path.dirname(os.path.dirname(pages))

    def rewritten(match: re.Match[str]) -> str:
        name, _, anchor = match[1].partition("#")
        target = os.path.abspath(os.path.join(folder, name))
        if not name or target.startswith(pages + os.sep) or not target.startswith(root + os.sep):
            return match[0]
        kind = "tree" if os.path.isdir(target) else "blob"
        address = f"{config['repo_url']}/{kind}/main/{os.path.relpath(target, root)}"
        return f"]({address}{'#' + anchor if anchor else ''})"

    return _LINK.sub(rewritten, markdown)
