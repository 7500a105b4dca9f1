"""A part's NCCL logs on its node: read until the first collective has connected, then left alone; shipped; warnings told."""

from __future__ import annotations

import asyncio
from pathlib import Path

from orchestrator.control.nccl_watch import LIMIT, WARNINGS, NcclWatch, nccl_files, rank_of
from orchestrator.health.nccl_log import read


def a_watch(folder: Path, ranks: int = 2) -> NcclWatch:
    logs = folder / "nccl"
    logs.mkdir()
    return NcclWatch(logs, {rank: folder / f"rank-{rank}.log" for rank in range(ranks)}, ranks, "file")


def lines(rank: int, *texts: str) -> str:
    return "".join(f"h:{rank + 1}:{rank + 1} [{rank}] NCCL {text}\n" for text in texts)


def connects(rank: int, how: str = "P2P/CUMEM") -> str:
    who = f"comm 0x1 rank {rank} nranks 2 cudaDev {rank} nvmlDev {rank} busId {rank + 1}0 commId 0x7"
    link = f"Channel 00/0 : {rank}[{rank}] -> {1 - rank}[{1 - rank}] via {how}"
    return lines(
        rank,
        f"INFO ncclCommInitRankConfig {who} - Init START",
        f"INFO ncclCommInitRankConfig {who} - Init COMPLETE",
        f"INFO {link}",
        "INFO Connected all rings, use ring PXN 0 GDR 0",
    )


async def followed(watch: NcclWatch, ended: bool = False) -> None:
    async with asyncio.timeout(10):
        await watch.follow(lambda: ended, lambda: None)


def write(watch: NcclWatch, rank: int, text: str, pid: int = 7) -> Path:
    path = watch.folder / f"nccl-{rank}.{pid}.log"
    with path.open("a") as file:
        file.write(text)
    return path


def test_once_the_links_are_known_nothing_more_is_read(tmp_path: Path) -> None:
    watch = a_watch(tmp_path)
    for rank in (0, 1):
        write(watch, rank, connects(rank))
    asyncio.run(followed(watch))
    assert watch.value is not None
    assert watch.value.links == {"P2P": 1}
    before = watch.value
    write(watch, 0, connects(0, "SHM/direct/direct"))
    asyncio.run(followed(watch, ended=True))
    assert watch.value == before


def test_lines_that_come_in_pieces_are_whole(tmp_path: Path) -> None:
    async def story() -> None:
        watch = a_watch(tmp_path)
        task = asyncio.create_task(watch.follow(lambda: False, lambda: None))
        texts = {rank: connects(rank) for rank in (0, 1)}
        for start in range(0, max(map(len, texts.values())), 11):
            for rank, text in texts.items():
                write(watch, rank, text[start : start + 11])
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await task
        assert watch.value is not None
        assert watch.value.links == {"P2P": 1}

    asyncio.run(story())


def test_a_part_that_ends_before_any_collective_has_a_value_without_links(tmp_path: Path) -> None:
    watch = a_watch(tmp_path)
    asyncio.run(followed(watch, ended=True))
    assert watch.value is not None
    assert (watch.value.links, watch.value.lines) == ({}, 0)


def test_what_lies_there_besides_is_no_rank_of_the_part(tmp_path: Path) -> None:
    watch = a_watch(tmp_path)
    write(watch, 99, connects(0))
    for name in ("nccl-.1.log", "other", "nccl-x.2.log"):
        (watch.folder / name).write_text("?")
    (watch.folder / "nccl-1.3.log").mkdir()
    asyncio.run(followed(watch, ended=True))
    assert watch.value is not None
    assert watch.value.links == {}
    assert [rank for rank, _ in nccl_files(watch.folder)] == [99]
    assert rank_of("nccl-12.4711.log") == 12


def test_warnings_go_into_the_ranks_log_once_and_not_without_end(tmp_path: Path) -> None:
    watch = a_watch(tmp_path)
    write(watch, 0, lines(0, "INFO nothing", *(f"WARN number {n % 30}" for n in range(60))))
    watch.tell_warnings()
    watch.tell_warnings()
    told = (tmp_path / "rank-0.log").read_text().splitlines()
    assert told == [f"[orch] NCCL warns: number {n}" for n in range(WARNINGS)]
    write(watch, 1, "h:2:2 [1] init.cc:9 NCCL WARN cut of")
    watch.tell_warnings()
    assert not (tmp_path / "rank-1.log").exists()
    write(watch, 1, "f\n")
    watch.tell_warnings()
    assert (tmp_path / "rank-1.log").read_text() == "[orch] NCCL warns: cut off\n"


def test_files_are_shipped_whole_in_pieces_and_again_for_another_controller(tmp_path: Path) -> None:
    watch = a_watch(tmp_path)
    path = write(watch, 0, connects(0))
    watch.ship()
    assert watch.pending()
    whole = path.read_bytes()
    assert [(name, offset, data) for name, offset, data in watch.take(1 << 20)] == [(path.name, 0, whole)]
    assert not watch.pending()
    watch.from_the_start()
    (again,) = watch.take(1 << 20)
    assert again[2] == whole
    watch.acknowledged(True)
    watch.from_the_start()
    assert not watch.pending()
    write(watch, 0, "more\n")
    watch.ship()
    assert [(offset, data) for _, offset, data in watch.take(1 << 20)] == [(len(whole), b"more\n")]


def test_a_log_without_end_is_kept_up_to_its_limit(tmp_path: Path) -> None:
    watch = a_watch(tmp_path)
    path = write(watch, 0, connects(0))
    with path.open("r+b") as file:
        file.truncate(2 * LIMIT)
    watch.ship()
    assert sum(len(data) for _, _, data in watch.take(8 * LIMIT)) == LIMIT
    assert not watch.pending()


def test_a_file_that_goes_away_keeps_nothing_waiting(tmp_path: Path) -> None:
    watch = a_watch(tmp_path)
    path = write(watch, 0, connects(0))
    watch.ship()
    path.unlink()
    assert list(watch.take(1 << 20)) == []
    assert not watch.pending()
    watch.ship()
    watch.tell_warnings()


def test_what_is_kept_can_be_read_like_any_log_of_nccl(tmp_path: Path) -> None:
    watch = a_watch(tmp_path)
    for rank in (0, 1):
        write(watch, rank, connects(rank))
    asyncio.run(followed(watch))
    assert watch.value is not None
    text = "".join(path.read_text() for _, path in nccl_files(watch.folder))
    assert read(text.splitlines()).links == watch.value.links
