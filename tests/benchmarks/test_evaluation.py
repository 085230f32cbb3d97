import time

import torch

from benchmarks import evaluation as benchmark
from benchmarks.generated import write_data
from chan.evaluation import evaluate as evaluation


def test_the_clock_starts_after_an_evaluation_of_a_few_images(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "WARM_UP", 2)
    write_data(tmp_path, {"test": 5}, 3, 16)
    seen, clock = [], time.perf_counter
    encode, evaluate = evaluation.encode, evaluation.evaluate

    def noted(name, work):
        def run(*arguments, **settings):
            seen.append(name(*arguments))
            return work(*arguments, **settings)

        return run

    monkeypatch.setattr(evaluation, "encode", noted(lambda _, split, *rest: len(split.counts), encode))
    monkeypatch.setattr(evaluation, "evaluate", noted(lambda split, *rest: -len(split.image_ids), evaluate))
    monkeypatch.setattr(time, "perf_counter", noted(lambda: "clock", clock))
    benchmark.measure(tmp_path, 5, torch.device("cpu"), "fp32")
    marks = [mark for mark in seen if mark != "clock"]
    assert marks == [2, -2, 5, -5]
    assert "clock" in seen[seen.index(-2) : seen.index(5)]
