"""Folders that are being written: a live process keeps its own, whatever others do."""

import errno
import os

from models.disk import partial

LONG_AGO = (1, 1)


def named(folder, host: str):
    return folder.with_name(f"{folder.name}.{host}.0a1b{partial.SUFFIX}")


def test_a_folder_is_made_again_that_was_removed_before_it_was_locked(tmp_path, monkeypatch):
    flock = partial.fcntl.flock

    def late(descriptor, how):  # others were faster
        monkeypatch.setattr(partial.fcntl, "flock", flock)
        partial.remove_abandoned(tmp_path / "it")
        assert not list(tmp_path.iterdir())
        flock(descriptor, how)

    monkeypatch.setattr(partial.fcntl, "flock", late)
    with partial.folder(tmp_path / "it") as own:
        (own / "file").touch()
        partial.remove_abandoned(tmp_path / "it")
        assert (own / "file").exists()
    assert not list(tmp_path.iterdir())


def test_what_is_locked_stays_however_old_it_is(tmp_path, monkeypatch):
    with partial.folder(tmp_path / "it") as own:
        os.utime(own, LONG_AGO)
        monkeypatch.setattr(partial, "this_system", lambda: "another")
        partial.remove_abandoned(tmp_path / "it")
        assert own.exists()


def test_only_age_tells_of_other_systems_and_where_there_are_no_locks(tmp_path, monkeypatch):
    elsewhere, here = (named(tmp_path / "it", host) for host in ("elsewhere", partial._host()))
    elsewhere.mkdir()
    partial.remove_abandoned(tmp_path / "it")

    def no_locks(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(partial.fcntl, "flock", no_locks)
    here.mkdir()
    with partial.folder(tmp_path / "it") as own:
        partial.remove_abandoned(tmp_path / "it")
        assert set(tmp_path.iterdir()) == {elsewhere, here, own}
    for path in (elsewhere, here):
        os.utime(path, LONG_AGO)
    partial.remove_abandoned(tmp_path / "it")
    assert not list(tmp_path.iterdir())
