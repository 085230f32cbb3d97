import json
from contextlib import closing
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from chan.training.log import TrainingLog


def test_lines_and_events_hold_the_same_numbers(tmp_path: Path) -> None:
    with closing(TrainingLog(tmp_path, 0)) as log:
        log.write("train", 10, 0, {"loss": 2.0})
        log.write("dev", 10, 0, {"rsum": 50.0, "i2t": {"r1": 3.0}})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"kind": "train", "step": 10, "epoch": 1, "loss": 2.0},
        {"kind": "dev", "step": 10, "epoch": 1, "rsum": 50.0, "i2t": {"r1": 3.0}},
    ]
    events = EventAccumulator(str(tmp_path)).Reload()
    found = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    assert found == {"train/loss": 2.0, "dev/rsum": 50.0, "dev/i2t/r1": 3.0}


def test_a_resumed_run_drops_what_it_repeats(tmp_path: Path) -> None:
    with closing(TrainingLog(tmp_path, 0)) as log:
        for step in (10, 20, 30):
            log.write("train", step, 0, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # what a crash leaves
    with closing(TrainingLog(tmp_path, 20)) as log:
        log.write("train", 30, 1, {"loss": 1.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(10, 10.0), (20, 20.0), (30, 1.0)]
