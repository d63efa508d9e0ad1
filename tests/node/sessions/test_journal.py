"""Journals: what was written is read, what was torn is left out, what is damaged is never read."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gennode.errors import UsageError
from gennode.node.sessions.journal import (
    MAX_AGE_S,
    MAX_JOURNALS,
    Journals,
    Watch,
    read_journal,
    write_header,
    write_token,
)
from gennode.wire.ids import ModelId
from tests.node.sessions.journals import HEADER, TOKENS, begin, interrupt

RECORD_BYTES = 8


def written(tokens: tuple[int, ...] = TOKENS) -> bytes:
    data, checksum = write_header(HEADER)
    for token in tokens:
        record, checksum = write_token(token, checksum)
        data += record
    return data


def header_bytes() -> int:
    return len(write_header(HEADER)[0])


class Told(list[str]):
    """What a person was warned of."""


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def journals(tmp_path: Path, told: Told) -> Journals:
    return Journals(tmp_path / "state" / "sessions", Watch(told.append))


def tokens_of(journals: Journals, name: str) -> tuple[int, ...]:
    journal = journals.resume(name)
    interrupt(journal, ())
    return journal.given


def path_of(journals: Journals) -> Path:
    [path] = journals._folder.glob("*.journal")
    return path


# -- the bytes ------------------------------------------------------------------------------------


def test_a_tail_that_is_torn_costs_the_torn_token_alone() -> None:
    whole, start = written(), header_bytes()
    for cut in range(start, len(whole) + 1):
        for tail in (b"", bytes(100)):  # ended there, or had grown when the power failed
            read = read_journal(whole[:cut] + tail)
            count = (cut - start) // RECORD_BYTES
            assert read.header == HEADER
            assert read.tokens == TOKENS[:count]
            assert read.end == start + count * RECORD_BYTES
            assert not read.is_done


def test_half_a_header_is_refused() -> None:
    for cut in range(header_bytes()):
        with pytest.raises((ValueError, UsageError)):
            read_journal(written()[:cut])


def test_a_flipped_bit_is_an_error_and_never_another_token() -> None:
    whole = written()
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises((ValueError, UsageError)):
            read_journal(bytes(data))


@given(order=st.permutations(range(len(TOKENS))), count=st.integers(1, len(TOKENS)))
def test_tokens_that_were_moved_or_lost_are_noticed(order: list[int], count: int) -> None:
    whole, start = written(), header_bytes()
    records = [whole[start + RECORD_BYTES * i :][:RECORD_BYTES] for i in order[:count]]
    data = whole[:start] + b"".join(records)
    if order[:count] == list(range(count)):
        assert read_journal(data).tokens == TOKENS[:count]
    else:
        with pytest.raises(ValueError, match="token"):
            read_journal(data)


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises((ValueError, UsageError)):
        read_journal(data)


def test_a_header_that_makes_no_sense_is_refused_though_its_checksum_fits() -> None:
    wrong = msgspec.structs.replace(HEADER, model=ModelId("no model"))
    with pytest.raises(ValueError, match="no sense"):
        read_journal(write_header(wrong)[0])
    sampling = dataclasses.replace(HEADER.sampling)
    object.__setattr__(sampling, "temperature", 9.0)
    with pytest.raises(ValueError, match="temperature"):
        read_journal(write_header(msgspec.structs.replace(HEADER, sampling=sampling))[0])


def test_another_versions_journal_is_left_alone(journals: Journals) -> None:
    interrupt(begin(journals))
    path = path_of(journals)
    path.write_bytes(path.read_bytes().replace(b"journal 1\n", b"journal 2\n"))
    with pytest.raises(UsageError, match="another version"):
        journals.resume(path.stem)
    assert path.exists()


# -- the files ------------------------------------------------------------------------------------


def test_an_interrupted_answer_is_gone_on_with_where_it_ended(journals: Journals) -> None:
    interrupt(begin(journals))
    [found] = journals.interrupted()
    assert (found.header, found.tokens) == (HEADER, len(TOKENS))
    again = journals.resume(found.name)
    assert (again.header, again.given) == (HEADER, TOKENS)
    interrupt(again, (8, 9))
    assert tokens_of(journals, found.name) == (*TOKENS, 8, 9)


def test_tokens_go_on_behind_a_torn_one(journals: Journals) -> None:
    interrupt(begin(journals))
    path = path_of(journals)
    path.write_bytes(path.read_bytes()[:-3])
    again = journals.resume(path.stem)
    assert again.given == TOKENS[:-1]
    interrupt(again, (8,))
    assert tokens_of(journals, path.stem) == (*TOKENS[:-1], 8)


def test_who_is_interrupted_hears_under_which_name_it_is_kept(tmp_path: Path, told: Told) -> None:
    watch = Watch(told.append, lambda journal: told.append(f"{journal.name} {journal.tokens}"))
    journals = Journals(tmp_path, watch)
    interrupt(begin(journals))
    assert told == [f"{path_of(journals).stem} {len(TOKENS)}"]


def test_a_whole_answer_leaves_nothing(journals: Journals) -> None:
    with begin(journals) as journal:
        journal.add(1)
    assert list(journals._folder.iterdir()) == []
    interrupt(begin(journals), ())  # nor does one that ended before its first token
    assert list(journals._folder.iterdir()) == []


def test_one_that_was_done_but_not_removed_is_no_longer_offered(journals: Journals) -> None:
    interrupt(begin(journals))
    path = path_of(journals)
    data = path.read_bytes()
    path.write_bytes(data + write_token((1 << 32) - 1, read_journal(data).checksum)[0])
    assert journals.interrupted() == []
    assert not path.exists()


def test_one_that_is_being_answered_is_not_offered(journals: Journals) -> None:
    def look() -> None:
        assert journals.interrupted() == []
        with pytest.raises(UsageError, match="being answered"):
            journals.resume(journal.name)

    journal = begin(journals)
    interrupt(journal, first=look)
    assert [one.name for one in journals.interrupted()] == [journal.name]


def test_a_damaged_one_is_moved_aside_with_a_word(journals: Journals, told: Told) -> None:
    interrupt(begin(journals))
    path = path_of(journals)
    data = path.read_bytes()
    path.write_bytes(data[:-12] + b"\1" + data[-11:])
    assert journals.interrupted() == []
    [word] = told
    assert "damaged" in word
    assert "token 5" in word
    aside = path.with_suffix(".damaged")
    assert aside.exists()
    assert str(aside) in word
    with pytest.raises(UsageError, match="no interrupted answer"):
        journals.resume(path.stem)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "x", "20261121-231500-zzzz", "a\0b"])
def test_no_name_leads_out_of_the_folder(name: str, journals: Journals) -> None:
    with pytest.raises(UsageError, match="no interrupted answer") as caught:
        journals.resume(name)
    assert "--resume" in caught.value.hint


def test_they_are_for_their_user_alone(journals: Journals) -> None:
    with begin(journals):
        assert path_of(journals).stat().st_mode & 0o777 == 0o600
        assert journals._folder.stat().st_mode & 0o777 == 0o700


def test_the_oldest_make_room(journals: Journals) -> None:
    for number in range(MAX_JOURNALS + 3):
        interrupt(begin(journals, began_s=HEADER.began_s + number))
    kept = journals.interrupted()
    assert len(kept) == MAX_JOURNALS
    assert kept[0].header.began_s == HEADER.began_s + 3
    long_ago_s = HEADER.began_s - MAX_AGE_S
    for path in journals._folder.iterdir():
        os.utime(path, (long_ago_s, long_ago_s))
    interrupt(begin(journals, began_s=HEADER.began_s + 1000))
    assert len(journals.interrupted()) == 1


def test_what_is_being_written_makes_no_room(journals: Journals) -> None:
    written = [begin(journals) for _ in range(MAX_JOURNALS + 3)]
    assert len(list(journals._folder.iterdir())) == len(written)
    for journal in written:
        interrupt(journal)
    interrupt(begin(journals))
    assert len(journals.interrupted()) == MAX_JOURNALS


def test_what_is_no_journal_is_left_alone(journals: Journals, told: Told) -> None:
    folder = journals._folder
    folder.mkdir(parents=True)
    (folder / "notes").mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / "20200101-000000-0000.journal").mkdir()
    os.mkfifo(folder / "20200101-000000-0001.journal")
    strays = set(folder.iterdir())
    for path in strays:
        os.utime(path, (0, 0))
    interrupt(begin(journals))
    assert told == []
    assert strays < set(folder.iterdir())
    assert len(journals.interrupted()) == 1
    assert [word.endswith("is no plain file") for word in told] == [True, True]


def test_a_journal_is_not_followed_to_another_place(journals: Journals, tmp_path: Path) -> None:
    interrupt(begin(journals))
    path = path_of(journals)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="no plain file"):
        journals.resume(path.stem)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("A FULL DISK IS NOT TESTED HERE: only root can mount a small one")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> None:
    with open(folder / "filler", "wb", buffering=0) as filler:
        while True:
            try:
                filler.write(bytes(512))
            except OSError:
                return


def test_a_disk_that_fills_up_ends_the_journal_with_one_warning(
    tiny_disk: Path, told: Told
) -> None:
    journals = Journals(tiny_disk, Watch(told.append))
    journal = begin(journals)
    interrupt(journal, range(10_000), first=lambda: fill(tiny_disk))
    assert journal.tokens < 10_000
    [warning] = told
    assert f"first {journal.tokens} tokens" in warning
    assert tokens_of(journals, journal.name) == tuple(range(journal.tokens))
    assert journals.begin(msgspec.structs.replace(HEADER, began_s=HEADER.began_s + 1)) is None
    assert "can't be resumed" in told[1]


def test_a_program_that_is_killed_leaves_all_that_it_gave_out(
    tmp_path: Path, journals: Journals
) -> None:
    script = (
        "import os, signal, msgspec\n"
        "from pathlib import Path\n"
        "from tests.node.sessions.journals import HEADER, TOKENS\n"
        "from gennode.node.sessions.journal import Journals, Watch\n"
        f"journal = Journals(Path({str(journals._folder)!r}), Watch(print)).begin(HEADER)\n"
        "for token in TOKENS: journal.add(token)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], check=False, cwd=Path.cwd())
    assert ended.returncode == -9
    [found] = journals.interrupted()
    assert tokens_of(journals, found.name) == TOKENS
