"""What the site does to docstrings: ``Example:`` is run there, so it is code here; ``::`` needs no second colon."""

import re

import griffe


class Examples(griffe.Extension):
    """Write for Markdown what our docstrings write for people who read the source."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Change the text of one docstring, before its sections are told apart."""
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"::$", ":", text, flags=re.MULTILINE)
