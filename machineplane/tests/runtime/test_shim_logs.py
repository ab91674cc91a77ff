"""Log lines, their pieces, and files that turn over."""

from machineplane.runtime.logs import LogReader, parse_line, tail_offset
from machineplane.runtime.shim.logs import MAX_PIECE, LineSplitter, LogFile, timestamp


def test_time_stamps_have_nanoseconds():
    assert timestamp(1_700_000_000_000_000_042) == b"2023-11-14T22:13:20.000000042Z"


def test_lines_over_several_chunks_and_an_unfinished_end():
    splitter = LineSplitter("stdout")
    assert splitter.feed(b"he", 0) == b""
    assert (
        splitter.feed(b"llo\n\nrest", 0).split(b" ", 1)[1]
        == b"stdout F hello\n1970-01-01T00:00:00.000000000Z stdout F \n"
    )
    assert splitter.finish(0).endswith(b"stdout F rest\n")
    assert splitter.finish(0) == b""


def test_a_long_line_is_written_in_pieces_and_reads_as_one():
    splitter = LineSplitter("stderr")
    text = b"x" * (2 * MAX_PIECE + 5)
    raw = splitter.feed(text[:20_000], 0) + splitter.feed(text[20_000:] + b"\n", 0)
    lines = raw.splitlines()
    assert [line.split(b" ")[2] for line in lines] == [b"P", b"P", b"F"]
    assert b"".join(parse_line(line).text for line in lines) == text + b"\n"


def test_a_file_turns_over_at_its_cap_and_keeps_two(tmp_path):
    path = tmp_path / "0.log"
    log = LogFile(str(path), cap=100)
    for number in range(10):
        log.write(b"%039d\n" % number)
    log.close()
    log.write(b"lost, and no harm done\n")
    kept = (tmp_path / "0.log.1").read_text() + path.read_text()
    assert [int(line) for line in kept.split()] == [6, 7, 8, 9]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_reader_goes_on_over_a_turn(tmp_path):
    path = tmp_path / "0.log"
    log = LogFile(str(path), cap=200)
    splitter = LineSplitter("stdout")
    reader = LogReader(path)
    reader.open(None)
    seen = []
    for number in range(20):
        log.write(splitter.feed(b"%d\n" % number, 0))
        while lines := reader.read():
            seen += [int(line.text) for line in lines]
    reader.close()
    log.close()
    assert seen == list(range(20))


def test_tail_offset(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"".join(b"%d\n" % n for n in range(100_000)))
    with open(path, "rb") as file:
        file.seek(tail_offset(path, 3))
        assert file.read() == b"99997\n99998\n99999\n"
    assert tail_offset(path, 200_000) == 0
