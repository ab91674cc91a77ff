"""Garbage collection on a real store, with a disk and a clock of the test's own."""

import os
from pathlib import Path
from typing import Any

import pytest
from attrs import define, evolve

from machineplane.runtime.images import ImageStore
from machineplane.runtime.images.collector import BROKEN_KEPT_S, Collected, Collector, Disk, read_disk
from machineplane.runtime.images.make import PAUSE_REF, ensure_pause, make_image
from machineplane.runtime.images.partial import PartialBlob
from machineplane.runtime.images.refs import RefIndex
from machineplane.runtime.images.registry.settings import GarbageSettings

pytestmark = pytest.mark.root
NOW = 2_000_000_000.0
MB = 1_000_000
ROOMY = Disk(100 * MB, 90 * MB)
USUAL = GarbageSettings()


@define
class Bench:
    store: ImageStore
    disk: Disk = ROOMY
    settings: GarbageSettings = USUAL

    def collect(self, *in_use: str) -> Collected:
        pinned = frozenset((PAUSE_REF,))
        collector = Collector(
            store=self.store,
            settings=self.settings,
            pinned=pinned,
            disk=lambda _: self.disk,
            clock=lambda: NOW,
        )
        return collector.collect(frozenset(in_use))

    def add(self, name: str, *, used_s_ago: float, size: int = MB, pulled: bool = True) -> str:
        """An image of about twice ``size`` on the disk (its blob, and its layer unpacked); its digest."""
        ref = f"localhost/{name}:latest"
        archive = self.store.path / "archive.tar"
        make_image(archive, ref=ref, files={name: (os.urandom(size), 0o644)})
        self.store.import_file(archive)
        archive.unlink()
        image = self.store.resolve(ref)
        RefIndex(self.store.path).set({ref: evolve(self.store.entries()[ref], stored=0, pulled=pulled)})
        os.utime(self.store.blob_path(image.digest), (NOW - used_s_ago, NOW - used_s_ago))
        return image.digest

    @property
    def names(self) -> list[str]:
        return [info.ref.removeprefix("localhost/").removesuffix(":latest") for info in self.store.ls()]


@pytest.fixture
def bench(store: ImageStore) -> Bench:
    return Bench(store)


def test_with_room_nothing_goes(bench: Bench) -> None:
    bench.add("old", used_s_ago=1e6)
    bench.disk = Disk(100 * MB, 16 * MB)  # 84 % used
    assert bench.collect() == Collected(removed=(), freed=0, short=0, used_percent=84)
    assert bench.names == ["old"]


def test_from_the_high_mark_down_to_the_low_one_the_longest_unused_first(bench: Bench) -> None:
    for number, name in enumerate(("a", "b", "c", "d")):
        bench.add(name, used_s_ago=1e6 - number)
    bench.disk = Disk(100 * MB, 15 * MB)  # 85 %: 5 MB to free, 2 MB an image
    done = bench.collect()
    assert done.removed == ("localhost/a:latest", "localhost/b:latest", "localhost/c:latest")
    assert done.freed >= 5 * MB and done.short == 0
    assert bench.names == ["d"]
    assert sum(path.stat().st_size for path in (bench.store.path / "blobs").iterdir()) < 1.1 * MB


def test_nameless_content_goes_before_any_name(bench: Bench) -> None:
    bench.add("a", used_s_ago=1e6)
    for name in ("gone1", "gone2", "gone3"):
        bench.add(name, used_s_ago=1e6)
        bench.store.remove(f"localhost/{name}")
    assert bench.collect().freed == 0  # there is room: somebody may give it a name again
    bench.disk = Disk(100 * MB, 15 * MB)
    done = bench.collect()
    assert done.removed == () and done.freed >= 5 * MB
    assert bench.names == ["a"]


def test_what_is_used_new_or_pinned_stays_and_the_lack_is_said(bench: Bench) -> None:
    pause = ensure_pause(bench.store)
    entry = bench.store.entries()[PAUSE_REF]
    RefIndex(bench.store.path).set({PAUSE_REF: evolve(entry, stored=0, pulled=True)})
    os.utime(bench.store.blob_path(pause.digest), (0, 0))
    used = bench.add("used", used_s_ago=1e6)
    bench.add("new", used_s_ago=119)
    bench.add("old", used_s_ago=121)
    bench.disk = Disk(100 * MB, 0)
    done = bench.collect(used)
    assert done.removed == ("localhost/old:latest",)
    assert done.used_percent == 100 and 17 * MB < done.short < 18.1 * MB
    assert bench.names == ["magik/pause", "new", "used"]
    assert bench.store.layer_paths(bench.store.resolve("localhost/used"))[0].is_dir()


def test_what_was_imported_stays_whatever_happens(bench: Bench) -> None:
    bench.add("imported", used_s_ago=1e6, pulled=False)
    bench.settings = GarbageSettings(maximum_age_s=3600)
    bench.disk = Disk(100 * MB, 0)
    assert bench.collect().removed == ()
    assert bench.names == ["imported"]


def test_all_names_of_an_image_go_together(bench: Bench, tmp_path: Path) -> None:
    digest = bench.add("a", used_s_ago=1e6, size=6 * MB)
    entry = bench.store.entries()["localhost/a:latest"]
    RefIndex(bench.store.path).set({"localhost/b:latest": entry})
    bench.disk = Disk(100 * MB, 15 * MB)
    assert bench.collect().removed == ("localhost/a:latest", "localhost/b:latest")
    assert not bench.store.blob_path(digest).exists()


def test_age_alone_where_it_is_wanted(bench: Bench) -> None:
    bench.settings = GarbageSettings(maximum_age_s=3600)
    bench.add("old", used_s_ago=3601)
    bench.add("young", used_s_ago=3599)
    used = bench.add("used", used_s_ago=1e6)
    assert bench.collect(used).removed == ("localhost/old:latest",)
    assert bench.names == ["used", "young"]


def test_use_makes_young_again(bench: Bench) -> None:
    bench.settings = GarbageSettings(maximum_age_s=3600)
    bench.add("a", used_s_ago=1e6)
    image = bench.store.resolve("localhost/a")
    bench.store.use(image)
    os.utime(bench.store.blob_path(image.digest), (NOW, NOW))
    assert bench.collect().removed == ()
    assert bench.store.last_used(image.digest) == NOW


def broken(bench: Bench, age_s: float, name: str = "0" * 64) -> Path:
    path = bench.store.partials / name
    path.write_bytes(bytes(MB))
    os.utime(path, (NOW - age_s, NOW - age_s))
    return path


def test_broken_downloads_are_kept_for_a_day_and_less_under_pressure(bench: Bench) -> None:
    path = broken(bench, BROKEN_KEPT_S - 1)
    bench.collect()
    assert path.exists()
    bench.disk = Disk(100 * MB, 10 * MB)
    bench.collect()
    assert not path.exists()
    path = broken(bench, BROKEN_KEPT_S + 1)
    bench.disk = Disk(100 * MB, 90 * MB)
    assert bench.collect().freed >= MB
    assert not path.exists()


def test_downloads_under_way_are_left(bench: Bench) -> None:
    part = PartialBlob(bench.store.partials, "sha256:" + "1" * 64, 100)
    part.write(b"x" * 10)
    os.utime(part.path, (0, 0))
    bench.disk = Disk(100 * MB, 0)
    bench.collect()
    assert part.path.exists()
    part.close(keep=True)
    os.utime(part.path, (0, 0))
    bench.collect()
    assert not part.path.exists()


@pytest.mark.parametrize(
    ("capacity", "available", "used", "missing"),
    [
        (100, 15, 85, 5),
        (100, 16, 84, 4),
        (1000, 155, 85, 45),
        (100, 100, 0, 0),
        (0, 0, 0, 0),
        (100, 0, 100, 20),
    ],
)
def test_percentages(capacity: int, available: int, used: int, missing: int) -> None:
    disk = Disk(capacity, available)
    assert (disk.used_percent, disk.missing(80)) == (used, missing)


def test_the_real_disk(tmp_path: Path) -> None:
    disk: Any = read_disk(tmp_path)
    assert 0 < disk.available <= disk.capacity
