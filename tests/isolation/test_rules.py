"""Each rule of the isolation has a test that is named after it, and its line in docs/security.md."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_NAMED = re.compile(r"test_rule_(\d+)_\w+")
_LISTED = re.compile(r"^(\d+)\. \*\*", re.MULTILINE)


def _tests() -> list[str]:
    files = [*ROOT.glob("tests/**/test_*.py"), *ROOT.glob("packages/*/tests/**/test_*.py")]
    return [
        node.name
        for path in files
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not _skipped(node)
    ]


def _skipped(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("skip" in ast.unparse(decorator) for decorator in node.decorator_list)


def test_every_rule_has_a_test_named_after_it_and_no_test_names_another() -> None:
    proved = {int(named[1]) for name in _tests() if (named := _NAMED.fullmatch(name))}

    assert proved == set(range(1, 28))


def test_the_documentation_lists_every_rule_once() -> None:
    section = (ROOT / "docs" / "security.md").read_text().split("## The rules\n", 1)[1].split("\n## ", 1)[0]

    assert [int(number) for number in _LISTED.findall(section)] == list(range(1, 28))
