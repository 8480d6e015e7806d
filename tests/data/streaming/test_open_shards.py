"""Open shards: how many, which are given up, and that one opening does not remove what another has made."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from codebrush.data.streaming.open_shards import AHEAD, OpenShards

PATIENCE = 20  # seconds after which a test gives up


def test_a_batch_may_need_more_shards_than_are_kept(tmp_path: Path) -> None:
    opened = list[int]()
    shards = OpenShards(lambda shard, folder: opened.append(shard), most=2, folder=tmp_path)
    for _ in range(3):
        shards.begin_batch([0, 1, 2])
        for shard in (0, 1, 2, 3, 3):
            _ = shards[shard]
    assert sorted(opened) == [0, 1, 2, 3, 3, 3]  # 3 is kept until the batch ends
    shards.close()


def test_a_shard_that_is_wanted_again_while_it_is_given_up_has_a_folder_of_its_own(tmp_path: Path) -> None:
    begun, go_on, folders = threading.Event(), threading.Event(), list[Path]()

    def open(shard: int, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        if shard == 0:
            folders.append(folder)
            if len(folders) == 1:
                begun.set()
                go_on.wait(PATIENCE)
        return folder

    shards = OpenShards(open, most=1, folder=tmp_path)
    shards.begin_batch([0])
    assert begun.wait(PATIENCE)
    shards.begin_batch([1])
    shards.begin_batch([0])
    kept = shards[0]
    go_on.set()
    shards._pool.shutdown()
    assert [folder.is_dir() for folder in folders] == [False, True]
    assert kept == folders[1]
    shards.close()
    assert not [*tmp_path.iterdir()]


def test_a_shard_that_a_thread_waits_for_is_not_given_up(tmp_path: Path) -> None:
    go_on = threading.Event()

    def open(shard: int, folder: Path) -> int:
        assert go_on.wait(PATIENCE)
        return shard

    shards, wanted = OpenShards(open, most=1, folder=tmp_path), range(AHEAD + 4)
    with ThreadPoolExecutor(len(wanted)) as pool:
        found = [pool.submit(shards.__getitem__, shard) for shard in wanted]
        while len(shards._held) < len(wanted):
            time.sleep(0.01)
        go_on.set()
        assert [each.result(PATIENCE) for each in found] == [*wanted]
    _ = shards[0]
    assert len(shards._held) == 1
    shards.close()


def test_an_opening_that_failed_is_tried_again(tmp_path: Path) -> None:
    tries = list[Path]()

    def open(shard: int, folder: Path) -> int:
        folder.mkdir()
        tries.append(folder)
        if len(tries) == 1:
            raise OSError("not now")
        return shard

    shards = OpenShards(open, most=1, folder=tmp_path)
    shards.begin_batch([0])
    shards._held[0][0].exception(PATIENCE)
    assert shards[0] == 0
    assert [*tmp_path.iterdir()] == tries[1:]
    shards.close()
