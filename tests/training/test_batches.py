"""Sampling: every query once an epoch, the same batches for any number of processes, resumable anywhere."""

import itertools

import numpy as np
import pytest
from small_run import write_passages

from distill.config import Mixing, Sampling
from distill.data.batches import Batch, Sampler, TrainingData, draw
from distill.data.labels import Labels
from distill.data.mixing import MixedSampler


def shard(first: int, sizes: list[tuple[int, int]]) -> Labels:
    """Lists of (positives, negatives); passage numbers tell their query, labels tell their passage."""
    lengths = [p + n for p, n in sizes]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    passages = np.concatenate([100 * (first + i) + np.arange(length) for i, length in enumerate(lengths)])
    positive = np.concatenate([np.arange(p + n) < p for p, n in sizes])
    return Labels(first + np.arange(len(sizes)), offsets, passages, positive, passages.astype(np.float32) / 10)


@pytest.fixture
def data() -> TrainingData:
    return TrainingData([shard(0, [(1, 5), (2, 3), (1, 1)]), shard(3, [(1, 9)] * 8)])


def batches(sampler: Sampler, size: int, count: int) -> list[Batch]:
    return [sampler.next_batch(size) for _ in range(count)]


def test_a_batch_has_a_positive_first_and_negatives_of_its_query(data):
    for batch in batches(Sampler(data, 4, seed=1), 4, 30):
        assert (batch.passage_rows // 100 == batch.query_rows[:, None]).all()
        positives = np.array([2 if q == 1 else 1 for q in batch.query_rows])
        places = batch.passage_rows % 100
        assert (places[:, 0] < positives).all() and (places[:, 1:] >= positives[:, None]).all()
        np.testing.assert_array_equal(batch.labels, batch.passage_rows.astype(np.float32) / 10)


def test_every_query_comes_once_an_epoch_in_an_order_of_its_own(data):
    sampler = Sampler(data, 2, seed=1)
    seen = np.concatenate([batch.query_rows for batch in batches(sampler, 5, 11)]).reshape(5, 11)
    assert all(sorted(epoch) == list(range(11)) for epoch in seen.tolist())
    assert len({tuple(epoch) for epoch in seen.tolist()}) == 5 and sampler.state_dict()["epoch"] == 4


def test_the_batch_size_changes_neither_order_nor_draws(data):
    whole = [batch.passage_rows for batch in batches(Sampler(data, 3, seed=1), 6, 4)]
    small = [batch.passage_rows for batch in batches(Sampler(data, 3, seed=1), 2, 12)]
    np.testing.assert_array_equal(np.concatenate(whole), np.concatenate(small))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_ranks_share_one_global_batch(data, world_size):
    batch = Sampler(data, 3, seed=1).next_batch(8)
    parts = [batch.rows(*batch.bounds(rank, world_size)) for rank in range(world_size)]
    np.testing.assert_array_equal(np.concatenate([part.query_rows for part in parts]), batch.query_rows)
    np.testing.assert_array_equal(np.concatenate([part.labels for part in parts]), batch.labels)


def test_a_resumed_sampler_goes_on_where_it_was(data):
    sampler = Sampler(data, 3, seed=1)
    batches(sampler, 4, 7)  # into the third epoch
    other = Sampler(data, 3, seed=99)
    other.load_state_dict(sampler.state_dict())
    assert len(sampler.state_dict()) == 3
    for one, two in zip(batches(sampler, 4, 9), batches(other, 4, 9), strict=True):
        np.testing.assert_array_equal(one.passage_rows, two.passage_rows)


def test_the_seed_and_the_epoch_change_the_draws(data):
    draws = {seed: draw(1, np.zeros(100), 8, seed).tolist() for seed in itertools.product((1, 2), (0, 1), (5, 6))}
    assert len({tuple(drawn) for drawn in draws.values()}) == 8


def test_negatives_are_drawn_uniformly_without_replacement():
    counts = np.zeros(12)
    for epoch in range(4000):
        drawn = draw(2, np.zeros(12), 3, (0, epoch, 7))
        assert drawn[0] < 2 and len(set(drawn[1:].tolist())) == 3
        counts[drawn] += 1
    assert np.abs(counts[:2] / 4000 - 1 / 2).max() < 0.04 and np.abs(counts[2:] / 4000 - 3 / 10).max() < 0.04


def test_a_short_list_is_repeated_evenly():
    drawn = draw(1, np.zeros(4), 7, (0, 0, 0))[1:]
    assert sorted(np.bincount(drawn, minlength=4)[1:].tolist()) == [2, 2, 3]


def test_negatives_drawn_by_label_are_a_softmax_without_replacement():
    labels, share = np.array([9.0, 0.0, 1.0, 2.0]), {}
    chances = np.exp(np.array([0.0, 1.0, 2.0]) / 2) / np.exp(np.array([0.0, 1.0, 2.0]) / 2).sum()
    for epoch in range(4000):
        drawn = tuple(draw(1, labels, 2, (0, epoch, 7), Sampling(by="label", temperature=2.0))[1:].tolist())
        share[drawn] = share.get(drawn, 0) + 1 / 4000
    for first, second in itertools.permutations(range(3), 2):
        expected = chances[first] * chances[second] / (1 - chances[first])
        assert share[first + 1, second + 1] == pytest.approx(expected, abs=0.03)


def test_the_hardest_negatives_have_the_highest_labels():
    labels = np.array([0.0, 5.0, 1.0, 3.0, 4.0])
    assert draw(2, labels, 2, (0, 0, 0), Sampling(by="hardest"))[1:].tolist() == [4, 3]


@pytest.mark.parametrize(("ranks", "places"), [((1, 2), {3, 4}), ((2, 3), {2, 3}), ((3, 9), {2}), ((7, 9), {2})])
def test_ranks_leave_only_some_places_of_the_teachers_order(ranks, places):
    labels = np.array([0.0, 5.0, 1.0, 3.0, 4.0])
    drawn = [draw(2, labels, 1, (0, epoch, 0), Sampling(ranks=ranks))[1] for epoch in range(60)]
    assert set(drawn) == places


def test_what_is_positive_for_a_query_elsewhere_in_the_batch_is_found():
    passages = np.array([[1, 2, 3], [4, 1, 5], [6, 7, 1], [1, 8, 4]])
    batch = Batch(
        np.arange(4),
        passages,
        np.zeros((4, 3), np.float32),
        passages,
        (np.array([1, 5]), np.array([4]), np.array([6]), np.array([9, 1])),
    )
    for first, last in [(0, 4), (0, 2), (2, 4)]:
        expected = {
            (query - first, place)
            for query in range(first, last)
            for place in range(12)
            if passages.reshape(-1)[place] in batch.positives[query] and place != 3 * query
        }
        assert set(zip(*batch.also_positive(first, last).tolist(), strict=True)) == expected


def test_a_variant_of_a_positive_is_a_positive_and_so_is_what_it_was_cut_from(tmp_path):
    passages = write_passages(tmp_path / "passages.arrow", ["a", "b", "c", "d"], [("cut of d", 3), ("of b", 1)])
    lists = [[4, 0, 1], [5, 3, 2], [3, 4, 0]]  # 4 was cut from 3, 5 from 1; the first is the positive
    data = TrainingData(
        [
            Labels(
                np.arange(3),
                np.arange(0, 10, 3),
                np.concatenate(lists),
                np.tile([True, False, False], 3),
                np.zeros(9, np.float32),
            )
        ],
        passages,
    )
    batch = Sampler(data, 2, seed=0).next_batch(3)
    flat = batch.origins.reshape(-1)
    assert (flat < 4).all() and (batch.passage_rows == 4).sum() == 2
    marked = {(query, place) for query, place in batch.also_positive(0, 3).T.tolist()}
    assert marked == {
        (query, place)
        for query in range(3)
        for place in range(9)
        if flat[place] == flat[3 * query] and place != 3 * query
    }
    assert len(marked) == 7


def mixed(mixing: Mixing, seed: int = 4) -> MixedSampler:
    return MixedSampler(
        {
            name: Sampler(TrainingData([shard(first, [(1, 4)] * size)]), 2, seed)
            for name, first, size in (("own", 0, 2), ("more", 100, 18))
        },
        mixing,
        seed,
    )


def test_datasets_take_turns_each_in_an_order_of_its_own():
    sampler = mixed(Mixing(by="round-robin"))
    alone = {
        name: Sampler(TrainingData([shard(first, [(1, 4)] * size)]), 2, 4)
        for name, first, size in (("own", 0, 2), ("more", 100, 18))
    }
    for name in ["own", "more"] * 8:
        drawn, batch = sampler.next_batch(3)
        assert drawn == name
        np.testing.assert_array_equal(batch.passage_rows, alone[name].next_batch(3).passage_rows)


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 18 / 20), (2.0, 3 / 4), (1e9, 1 / 2)])
def test_datasets_are_drawn_by_size_to_the_power_of_one_over_temperature(temperature, share):
    sampler = mixed(Mixing(temperature=temperature))
    names = [sampler.next_batch(1)[0] for _ in range(2000)]
    assert abs(names.count("more") / 2000 - share) < 4 * (share * (1 - share) / 2000) ** 0.5


@pytest.mark.parametrize("mixing", [Mixing(by="round-robin"), Mixing(temperature=2.0)], ids=["turns", "drawn"])
def test_a_mixture_goes_on_where_it_was(mixing):
    sampler, other = mixed(mixing), mixed(mixing, seed=99)
    for _ in range(13):
        sampler.next_batch(3)
    other.load_state_dict(sampler.state_dict())
    for _ in range(20):
        (one, ours), (two, theirs) = sampler.next_batch(3), other.next_batch(3)
        assert one == two
        np.testing.assert_array_equal(ours.passage_rows, theirs.passage_rows)
