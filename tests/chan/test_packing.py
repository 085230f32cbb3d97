import torch

from chan.packing import equal_length_runs, join, pack

SEQUENCES = [torch.arange(n * 2.0).view(n, 2) + 10 * n for n in (3, 1, 4, 1, 3)]


def test_a_slice_holds_its_sequences() -> None:
    part = pack(SEQUENCES).slice(1, 4)
    assert len(part) == 3
    assert part.lengths.tolist() == [1, 4, 1]
    assert torch.equal(part.rows, torch.cat(SEQUENCES[1:4]))


def test_sorting_moves_whole_sequences() -> None:
    packed = pack(SEQUENCES)
    order = packed.length_order()
    assert order is not None
    ordered = packed.take(order)
    assert order.tolist() == [1, 3, 0, 4, 2]
    assert torch.equal(ordered.rows, torch.cat([SEQUENCES[i] for i in (1, 3, 0, 4, 2)]))
    assert ordered.lengths.tolist() == [1, 1, 3, 3, 4]


def test_sequences_in_order_of_length_stay_where_they_are() -> None:
    assert pack([SEQUENCES[i] for i in (1, 3, 0, 4, 2)]).length_order() is None
    assert pack([SEQUENCES[0], SEQUENCES[4]]).length_order() is None


def test_runs_cover_all_rows_in_order() -> None:
    runs = equal_length_runs(pack([SEQUENCES[i] for i in (1, 3, 0, 4, 2)]).offsets)
    assert [(run.length, run.count, run.first, run.first_row) for run in runs] == [
        (1, 2, 0, 0),
        (3, 2, 2, 2),
        (4, 1, 4, 8),
    ]


def test_padded_places() -> None:
    assert pack(SEQUENCES).padded_places().tolist() == [0, 1, 2, 4, 8, 9, 10, 11, 12, 16, 17, 18]


def test_even_only_if_all_are_equally_long() -> None:
    assert not pack(SEQUENCES).is_even()
    assert pack([SEQUENCES[0], SEQUENCES[4]]).is_even()


def test_joined_parts_are_the_whole() -> None:
    whole = pack(SEQUENCES)
    joined = join([whole.slice(0, 2), whole.slice(2, 5)])
    assert torch.equal(joined.rows, whole.rows)
    assert torch.equal(joined.offsets, whole.offsets)
