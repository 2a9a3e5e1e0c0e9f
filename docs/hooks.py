"""For the website: links into the code, as docs/tour.md has them, lead to copies of the code."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

CODE = Path(__file__).parents[1] / "singlestrip_bids"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Keep mkdocs from looking for the code among the pages."""
    return re.sub(
        r"\[([^]]+)\]\((\.\./singlestrip_bids/[^)]+)\)", r'<a href="\2">\1</a>', markdown
    )


def on_post_build(config: Any, **_: Any) -> None:
    """Put the code beside the pages."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(CODE, Path(config["site_dir"]) / CODE.name, ignore=ignored, dirs_exist_ok=True)
