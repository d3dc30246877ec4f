"""Run folders: what is written is whole or not there, and what is damaged says so."""

import pytest

from detbench.errors import StoreError
from detbench.results import (
    ENVIRONMENT,
    REQUEST,
    RESULT,
    STOPPED,
    read_environment,
    read_request,
    read_result,
    read_stopped,
)
from detbench.store import whole_file, write_text


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_a_write_that_is_broken_off_leaves_what_was_there_and_nothing_beside_it(tmp_path, stop):
    path = tmp_path / "file.txt"
    write_text(path, "before")
    with pytest.raises(stop), whole_file(path) as file:
        file.write(b"half of what")
        raise stop
    assert [found.name for found in tmp_path.iterdir()] == ["file.txt"]
    assert path.read_text(encoding="utf-8") == "before"


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    with pytest.raises(
        StoreError, match=r"taken/below/x\.txt: can't be written \(.+\); see that the folder is yours"
    ):
        write_text(tmp_path / "taken" / "below" / "x.txt", "text")


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"{", b"[]", b'"text"'])
@pytest.mark.parametrize(
    "name, read",
    [
        (RESULT, read_result),
        (REQUEST, read_request),
        (STOPPED, read_stopped),
        (ENVIRONMENT, read_environment),
    ],
)
def test_a_damaged_record_is_named_with_what_to_do(tmp_path, name, read, damage):
    (tmp_path / name).write_bytes(damage)
    with pytest.raises(StoreError, match=rf"{name}: (damaged|unreadable) \(.+\); delete"):
        read(tmp_path)
