"""What the README quotes is there. (Its examples are run as doctests.)"""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path, number, line", re.findall(r"^(\S+\.py):(\d+):(.*)$", README, re.MULTILINE))
def test_a_quoted_line_is_that_line_of_the_file(path, number, line):
    assert (ROOT / path).read_text().splitlines()[int(number) - 1] == line


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:fbp|tests|scripts|experiments)/[\w/.]*)`", README))))
def test_a_named_file_exists(path):
    assert (ROOT / path).exists()
