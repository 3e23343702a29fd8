"""Files appear whole or not at all, and nothing of others goes for them."""

import errno
import re

import pytest
from safetensors import SafetensorError

from mathrl.errors import UserError
from mathrl.run.files import atomic, refuse_taken, write_json, write_text, writing


def test_a_file_never_takes_the_place_of_a_folder(tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.tex").write_text("years of work")
    (tmp_path / "link").symlink_to(folder)
    for place in (folder, tmp_path / "link"):
        for write in (lambda p: write_text(p, "page"), lambda p: write_json(p, {})):
            with pytest.raises(UserError, match=r"is a folder, and a file is to be written: name a file"):
                write(place)
    assert (folder / "chapter.tex").read_text() == "years of work"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "thesis"]


def test_a_folder_is_replaced_whole_and_stays_where_the_new_one_fails(tmp_path):
    place = tmp_path / "adapter"
    for content in ("old", "new"):
        with atomic(place) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [p.name for p in place.iterdir()] == ["new"]
    with pytest.raises(ZeroDivisionError), atomic(place) as temporary:
        temporary.mkdir()
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.rglob("*")] == ["adapter", "new"]


def test_the_folders_above_what_the_user_names_are_made_and_a_full_disk_is_told(tmp_path):
    file = tmp_path / "new" / "folder" / "file"
    with writing(file):
        write_text(file, "whole")
    assert file.read_text() == "whole"
    with pytest.raises(UserError, match=r"folder/file cannot be written: the disk is full"), writing(file):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(UserError, match=r"file/below cannot be written: "), writing(file / "below"):
        pass


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_error_that_names_the_file(tmp_path, error):
    with pytest.raises(OSError, match="No space left") as raised, atomic(tmp_path / "adapter"):
        raise error
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "adapter"))
    with pytest.raises(SafetensorError), atomic(tmp_path / "adapter"):
        raise SafetensorError("header too large")


def test_a_file_that_the_user_names_is_refused_before_the_work(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    refuse_taken(file, "--out", overwrite=True)
    refuse_taken(tmp_path / "new" / "deep" / "x.jsonl", "--out", overwrite=False)
    for path, why in (
        (file, "exists: choose another --out, or replace it with --overwrite"),
        (tmp_path, "is a folder: choose another --out"),
        (file / "x.jsonl", f"cannot be made: {file} is no folder"),
        (tmp_path / ("n" * 300), "cannot be made: File name too long"),
    ):
        with pytest.raises(UserError, match=re.escape(why)):
            refuse_taken(path, "--out", overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
