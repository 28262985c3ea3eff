from __future__ import annotations

from shoal.trainer.exports import why_unwritable


def test_a_file_can_be_where_a_folder_is_or_can_be_made(tmp_path):
    assert why_unwritable(tmp_path / "model") == why_unwritable(tmp_path / "new" / "er" / "model") == ""


def test_why_no_file_can_be_is_said_before_it_is_written(tmp_path):
    (tmp_path / "file").touch()
    assert why_unwritable(tmp_path / "file" / "new" / "model") == f"{tmp_path}/file is no folder"
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    assert why_unwritable(tmp_path / "nowhere" / "model") == f"{tmp_path}/nowhere is no folder"
