"""What the site does to docstrings: ``Example:`` is run there, so it is code here; ``::`` needs no second colon."""

import re
from pathlib import Path

import griffe

DOCS = Path(__file__).resolve().parent


class Examples(griffe.Extension):
    """Write for Markdown what our docstrings write for people who read the source."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Change the text of one docstring, before its sections are told apart; write private names of types out."""
        if isinstance(obj, griffe.Function):
            for parameter in obj.parameters:
                named = parameter.annotation
                if isinstance(named, griffe.ExprName) and named.name.startswith("_"):
                    meant = obj.module.members.get(named.name)
                    if isinstance(meant, griffe.Attribute) and meant.value is not None:
                        parameter.annotation = meant.value
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"\bdocs/([\w/-]+)\.md\b", _link, text)


def _link(named: re.Match[str]) -> str:
    """Lead to a page that a docstring names, from where the reference lies."""
    page = named[1]
    return f"[{page}](../{page}.md)" if (DOCS / f"{page}.md").is_file() else named[0]
