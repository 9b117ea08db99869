"""Sampling: every query once per epoch, the same batches for any number of processes, resumable anywhere."""

import itertools

import numpy as np
import pytest

from distill.config import Mixing, Sampling
from distill.store.labels import Labels
from distill.training.batches import Batch, Sampler, TrainingData, draw
from distill.training.mixing import MixedSampler
from tests.helpers.small_run import write_passages


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


def test_every_query_appears_once_per_epoch_in_a_new_order(data):
    sampler = Sampler(data, 2, seed=1)
    seen = np.concatenate([batch.query_rows for batch in batches(sampler, 5, 11)]).reshape(5, 11)
    assert all(sorted(epoch) == list(range(11)) for epoch in seen.tolist())
    assert len({tuple(epoch) for epoch in seen.tolist()}) == 5 and sampler.state_dict()["epoch"] == 4


def test_the_batch_size_changes_neither_order_nor_draws(data):
    whole = [batch.passage_rows for batch in batches(Sampler(data, 3, seed=1), 6, 4)]
    small = [batch.passage_rows for batch in batches(Sampler(data, 3, seed=1), 2, 12)]
    np.testing.assert_array_equal(np.concatenate(whole), np.concatenate(small))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_slices_of_all_ranks_make_up_the_global_batch(data, world_size):
    batch = Sampler(data, 3, seed=1).next_batch(8)
    parts = [batch.rows(*batch.bounds(rank, world_size)) for rank in range(world_size)]
    np.testing.assert_array_equal(np.concatenate([part.query_rows for part in parts]), batch.query_rows)
    np.testing.assert_array_equal(np.concatenate([part.labels for part in parts]), batch.labels)


def test_a_sampler_resumes_at_its_position(data):
    sampler = Sampler(data, 3, seed=1)
    batches(sampler, 4, 7)  # into the third epoch
    other = Sampler(data, 3, seed=99)
    other.load_state_dict(sampler.state_dict())
    assert len(sampler.state_dict()) == 3
    for expected, resumed in zip(batches(sampler, 4, 9), batches(other, 4, 9), strict=True):
        np.testing.assert_array_equal(resumed.passage_rows, expected.passage_rows)


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
def test_sampling_ranks_restrict_negatives_to_ranks_of_their_labels(ranks, places):
    labels = np.array([0.0, 5.0, 1.0, 3.0, 4.0])
    drawn = [draw(2, labels, 1, (0, epoch, 0), Sampling(ranks=ranks))[1] for epoch in range(60)]
    assert set(drawn) == places


def test_known_positives_are_found_elsewhere_in_the_batch():
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
        assert set(zip(*batch.known_positives(first, last).tolist(), strict=True)) == expected


def test_variants_and_their_originals_count_as_known_positives(tmp_path):
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
    marked = {(query, place) for query, place in batch.known_positives(0, 3).T.tolist()}
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


def test_round_robin_alternates_datasets_each_in_its_own_order():
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
def test_a_mixed_sampler_resumes_at_its_position(mixing):
    sampler, other = mixed(mixing), mixed(mixing, seed=99)
    for _ in range(13):
        sampler.next_batch(3)
    other.load_state_dict(sampler.state_dict())
    for _ in range(20):
        (name, batch), (resumed_name, resumed) = sampler.next_batch(3), other.next_batch(3)
        assert resumed_name == name
        np.testing.assert_array_equal(resumed.passage_rows, batch.passage_rows)


def without_positives() -> TrainingData:
    """A judged list, then lists of candidates only; labels are in no order."""
    rng = np.random.default_rng(3)
    lists = shard(0, [(1, 5), (0, 12), (0, 2), (0, 7)])
    return TrainingData(
        [Labels(lists.query, lists.offsets, lists.passages, lists.positive, np.float32(rng.permutation(27)))]
    )


def test_a_list_without_a_positive_is_drawn_as_negatives_are_with_its_highest_label_first():
    data = without_positives()
    for batch in batches(Sampler(data, 4, seed=1), 4, 20):
        for i, query in enumerate(batch.query_rows.tolist()):
            _, rows, labels, positives = data.query(query)
            drawn = batch.passage_rows[i]
            assert batch.labels[i].tolist() == [labels[rows.tolist().index(row)] for row in drawn]
            if positives:
                assert drawn[0] == rows[0]
            else:
                assert batch.labels[i, 0] == batch.labels[i].max() and not len(batch.positives[i])
                assert len(set(drawn.tolist())) == min(5, len(rows))


def test_draws_without_a_positive_are_uniform_over_the_list():
    labels, counts = np.arange(6.0), np.zeros(6)
    for epoch in range(3000):
        counts[draw(0, labels, 2, (0, epoch, 0))] += 1
    assert np.abs(counts / 3000 - 0.5).max() < 0.04


@pytest.mark.parametrize("sampling", [Sampling(by="hardest"), Sampling(by="hardest", ranks=(2, 4))])
def test_sampling_applies_to_all_passages_of_a_list_without_a_positive(sampling):
    labels = np.array([0.3, 0.9, 0.1, 0.7, 0.5])
    expected = [1, 3, 4] if sampling.ranks is None else [3, 4, 0]
    first, *others = draw(0, labels, 2, (0, 0, 0), sampling).tolist()
    assert first == expected[0] and sorted(others) == sorted(expected[1:])


def test_a_pseudo_positive_is_the_highest_label_of_the_list_and_masked_in_the_batch():
    data = without_positives()
    for batch in batches(Sampler(data, 4, seed=1, pseudo_positives=True), 4, 20):
        for i, query in enumerate(batch.query_rows.tolist()):
            _, rows, labels, positives = data.query(query)
            if not positives:
                assert batch.passage_rows[i, 0] == rows[np.argmax(labels)]
                assert batch.passage_rows[i, 0] not in batch.passage_rows[i, 1:]
                assert batch.positives[i].tolist() == [batch.passage_rows[i, 0]]


def logged(asked: list[int]) -> TrainingData:
    lists = shard(0, [(1, 9) if count == 0 else (0, 10) for count in asked])
    return TrainingData([lists], asked=np.array(asked))


@pytest.mark.parametrize(("weights", "power"), [("root", 0.5), ("count", 1.0)])
def test_queries_of_a_log_are_drawn_by_their_counts_and_judged_ones_once(weights, power):
    asked = [0, 100, 4, 0, 1, 36]
    sampler, epochs = Sampler(logged(asked), 4, seed=1, weights=weights), 300
    drawn = np.concatenate([batch.query_rows for batch in batches(sampler, 6, epochs)]).reshape(epochs, 6)
    assert all((epoch == 0).sum() == (epoch == 3).sum() == 1 for epoch in drawn)
    shares = np.array(asked) ** power / sum(count**power for count in asked)
    expected = np.where(np.array(asked) > 0, 4 * shares, 1.0)
    times = np.stack([(drawn == query).sum(1) for query in range(6)])
    assert np.abs(times - expected[:, None]).max() < 1  # rounded up or down
    np.testing.assert_allclose(times.mean(1), expected, atol=0.1)


def test_repeated_draws_of_a_query_take_other_passages_and_resume():
    data = logged([1, 1000])
    sampler = Sampler(data, 3, seed=1, weights="count")
    draws = [batch.passage_rows[0].tolist() for batch in batches(sampler, 1, 2)]
    assert sampler.state_dict()["epoch"] == 0 and sorted(draws[0]) != sorted(draws[1])
    other = Sampler(data, 3, seed=9, weights="count")
    other.load_state_dict(sampler.state_dict())
    np.testing.assert_array_equal(other.next_batch(5).passage_rows, sampler.next_batch(5).passage_rows)


def test_weights_without_a_log_change_nothing(data):
    plain, weighted = (Sampler(data, 3, seed=1, weights=weights) for weights in ("equal", "count"))
    np.testing.assert_array_equal(plain.next_batch(16).passage_rows, weighted.next_batch(16).passage_rows)
