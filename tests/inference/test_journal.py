import os
import subprocess
import sys
from pathlib import Path

import pytest

from segline.inference.journal import JOURNAL, Claim, Journal

SETTINGS = {"blend": "cores"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.png"
    path.write_text("pixels")
    return path


def test_what_one_process_has_done_the_others_know(tmp_path: Path, file: Path) -> None:
    first, second = Journal(tmp_path, SETTINGS), Journal(tmp_path, SETTINGS)
    mask = tmp_path / "a.png"
    assert not second.done(file, [mask])
    first.add(file, [mask])
    assert not second.done(file, [mask])  # noted, but the mask is gone
    mask.write_text("")
    assert second.done(file, [mask])
    assert not Journal(tmp_path, {"blend": "linear"}).done(file, [mask])
    file.write_text("other pixels")
    assert not second.done(file, [mask])


def test_what_several_calls_made_with_the_same_settings_is_known(tmp_path: Path, file: Path) -> None:
    mask, probs, overlay = (tmp_path / name for name in ("a.png", "a_probs.tif", "a_overlay.png"))
    for path in (mask, probs, overlay):
        path.write_text("")
    journal = Journal(tmp_path, SETTINGS)
    journal.add(file, [mask, probs])
    assert journal.done(file, [mask])  # fewer is no work
    assert not journal.done(file, [mask, overlay])  # an overlay lies there, by whatever settings
    journal.begin(file)
    journal.add(file, [mask, overlay])
    assert Journal(tmp_path, SETTINGS).made(file) == {"a.png", "a_probs.tif", "a_overlay.png"}
    other = Journal(tmp_path, {"blend": "linear"})
    other.begin(file)
    other.add(file, [mask])
    assert other.made(file) == {"a.png"}
    assert not other.done(file, [mask, probs])
    assert journal.made(file) == set()


def test_faults_are_kept_until_the_file_is_another_or_the_call_is(tmp_path: Path, file: Path) -> None:
    journal = Journal(tmp_path, SETTINGS)
    Journal(tmp_path, SETTINGS).add(file, fault="it is broken")
    assert journal.fault(file) == "it is broken"
    assert Journal(tmp_path, SETTINGS, since=journal.since).fault(file) == "it is broken"
    assert Journal(tmp_path, SETTINGS).fault(file) is None  # another call tries it again
    assert not journal.done(file, [])
    file.write_text("whole now")
    assert journal.fault(file) is None


def test_a_line_that_a_kill_cut_off_costs_that_line_alone(tmp_path: Path, file: Path) -> None:
    other = file.with_name("b.png")
    other.write_text("")
    Journal(tmp_path, SETTINGS).add(file)
    with (tmp_path / JOURNAL).open("a") as journal:
        journal.write('{"file": "/x/y.pn')
    assert Journal(tmp_path, SETTINGS).done(file, [])
    Journal(tmp_path, SETTINGS).add(other)
    again = Journal(tmp_path, SETTINGS)
    assert again.done(file, [])
    assert again.done(other, [])


def test_what_was_begun_with_other_settings_is_done_with_none(tmp_path: Path, file: Path) -> None:
    journal = Journal(tmp_path, SETTINGS)
    journal.begin(file)
    assert not (tmp_path / JOURNAL).exists()  # nothing to take back
    journal.add(file)
    other = Journal(tmp_path, {"blend": "linear"})
    other.begin(file)
    assert not journal.done(file, [])
    assert (journal.fault(file), journal.count(), other.count()) == (None, 1, 0)
    other.add(file)
    assert other.done(file, [])


def test_a_claim_that_is_removed_at_this_moment_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, look = tmp_path / "mask.tif", os.fstat

    def after_the_owner(handle: int) -> os.stat_result:
        monkeypatch.setattr(os, "fstat", look)
        (tmp_path / ".mask.tif.claim").unlink()
        return look(handle)

    claim = Claim(target, "key")
    monkeypatch.setattr(os, "fstat", after_the_owner)
    assert claim.take()
    assert not Claim(target, "key").take()
    claim.release(finished=True)


def test_a_claim_is_one_processs_and_outlives_it(tmp_path: Path) -> None:
    target = tmp_path / "mask.tif"
    hold = (
        "import sys, time\nfrom pathlib import Path\nfrom segline.inference.journal import Claim\n"
        "claim = Claim(Path(sys.argv[1]), 'key')\nassert claim.take()\nclaim.reach(128)\nprint('held', flush=True)\ntime.sleep(60)"
    )
    import segline

    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(target)],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(Path(segline.__file__).parents[1])},
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    assert not Claim(target, "key").take()
    other.kill()
    other.wait()
    other.stdout.close()
    claim = Claim(target, "key")
    assert claim.take()
    assert claim.rows == 128
    claim.reach(256)
    claim.release(finished=False)
    another = Claim(target, "other settings")
    assert another.take()
    assert another.rows == 0
    another.release(finished=True)
    assert list(tmp_path.iterdir()) == []
