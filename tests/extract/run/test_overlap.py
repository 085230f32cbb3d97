import threading
import time
from functools import partial

import pytest
import torch

from extract.run.overlap import AsyncStage


def test_work_is_done_in_order_in_another_thread():
    done = []

    def work(number):
        time.sleep(0.02 * (3 - number))  # the first takes longest
        done.append((number, threading.get_ident()))
        return number

    with AsyncStage(torch.device("cpu")) as stage:
        futures = [stage.submit(partial(work, n), stage.record()) for n in range(3)]
        assert [future.result() for future in futures] == [0, 1, 2]
    assert [number for number, _ in done] == [0, 1, 2]
    assert threading.get_ident() not in {thread for _, thread in done}


def test_errors_arrive_where_results_do():
    def fail():
        raise ValueError("no")

    with AsyncStage(torch.device("cpu")) as stage:
        future = stage.submit(fail, stage.record())
        with pytest.raises(ValueError, match="no"):
            future.result()


def test_events_time_what_lies_between_them():
    with AsyncStage(torch.device("cpu")) as stage:
        start = stage.record()
        time.sleep(0.05)
        assert start.seconds_to(stage.record()) >= 0.05


@pytest.mark.gpu
def test_a_gpus_work_is_seen_whole():
    device = torch.device("cuda")
    with AsyncStage(device) as stage:
        start = stage.record()
        one = torch.ones(4096, 4096, device=device)
        product = one
        for _ in range(20):
            product = (product @ one) / 4096
        ready = stage.record()
        total = stage.submit(lambda: product.sum().item(), ready).result()
        assert total == pytest.approx(4096**2)
        assert start.seconds_to(ready) > 0
