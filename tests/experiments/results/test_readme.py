"""A block between two markers of a Markdown file: what is replaced, and what is left alone."""

import pytest

from datamodules.errors import InputError
from experiments.results.readme import replace_block

OLD = "a `<!-- results -->` in prose\n<!-- results one -->\nold\n<!-- /results -->\nz\n"


def test_whole_lines_alone_are_markers_and_all_else_stays(tmp_path):
    page, link = tmp_path / "page.md", tmp_path / "link.md"
    page.write_bytes(OLD.replace("\n", "\r\n").encode())
    link.symlink_to(page)
    replace_block(link, "new\n", kind="results", name="one")
    assert page.read_bytes().decode() == OLD.replace("old", "new").replace("\n", "\r\n")
    assert link.is_symlink()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a <!-- results --> b <!-- /results -->\n", "has no lines"),
        ("<!-- /results -->\n<!-- results -->\n", "has no lines"),
        ("<!-- results -->\nkept\n<!-- results two -->\n2\n<!-- /results -->\n", "another block"),
        (2 * "<!-- results -->\n<!-- /results -->\n", "stands twice"),
        (None, "no such file"),
        (b"<!-- results -->\n\xfc\n<!-- /results -->\n", "not UTF-8"),
    ],
)
def test_a_file_in_which_text_would_be_lost_is_refused(tmp_path, text, words):
    page = tmp_path / "page.md"
    if text is not None:
        page.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=words):
        replace_block(page, "new\n", kind="results", name="one")
    assert text is None or page.read_bytes() == (text if isinstance(text, bytes) else text.encode())
