"""Pages of documents whose examples have results give these results."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(path for path in DOCS.glob("*.md") if "\n>>> " in path.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_give_the_results_that_the_page_shows(page: Path) -> None:
    """All blocks of a page together, as a reader would type them."""
    text = page.read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    examples = "\n".join(block for block in blocks if ">>> " in block)
    test = doctest.DocTestParser().get_doctest(examples, {}, page.name, str(page), 0)
    assert test.examples
    with torch.random.fork_rng():
        said: list[str] = []
        result = doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert not result.failed, "".join(said)


def test_the_page_about_the_port_is_among_them() -> None:
    assert "from_keras_to_pytorch.md" in [page.name for page in PAGES]
