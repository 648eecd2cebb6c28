"""Batches by kind and length: nothing is lost, nothing is mixed, and how work is shared changes no step."""

import random
from collections import Counter
from itertools import chain

import pytest
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from lora_cot.data.batches import GroupedBatches

SIZES = st.integers(1, 4)
SEEDS = st.none() | st.integers(0, 9)
ORDERS = st.booleans()
SAMPLES = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 999)), max_size=70)
FACTORS = [(1, 4, 1), (4, 1, 1), (1, 1, 4), (2, 2, 1), (1, 2, 2), (2, 1, 2)]
"""(batch size, ranks, accumulation) of a step of four samples."""


def in_groups(items, size):
    """Lists of so many items that follow one another; the last may have fewer."""
    items = list(items)
    return [items[start : start + size] for start in range(0, len(items), size)]


def unzipped(samples):
    """(keys, lengths)."""
    return [key for key, _ in samples], [length for _, length in samples]


def mixed_lengths(count, key="a"):
    """Lengths over a factor of twenty, as questions with short and long answers have them."""
    rng = random.Random(0)
    return [(key, round(100 * 20 ** rng.random())) for _ in range(count)]


def waste(batches, lengths):
    """Share of the padded tokens that are padding."""
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    return 1 - sum(lengths[i] for batch in batches for i in batch) / padded


def full_steps(batches, keys):
    """The samples of each step that takes as many as it can."""
    count = sum(number // 4 for number in Counter(keys).values())
    return [frozenset(step) for step in in_groups(chain.from_iterable(batches), 4)[:count]]


@given(SAMPLES, SIZES, SIZES, SIZES, SEEDS, ORDERS)
def test_every_sample_occurs_once(samples, size, ranks, accumulation, seed, by_length):
    """In an epoch, but for fewer repeats than ranks among what is left over of a key."""
    keys, lengths = unzipped(samples)
    found = Counter(chain.from_iterable(GroupedBatches(keys, lengths, size, ranks, accumulation, seed, by_length)))
    assert found.keys() == set(range(len(keys)))
    repeats = Counter(keys[number] for number in (found - Counter(range(len(keys)))).elements())
    assert all(repeats[key] == -count % ranks for key, count in Counter(keys).items())


@given(SAMPLES, SIZES, SIZES, SIZES, SEEDS, ORDERS)
def test_ranks_compute_the_same_kind_at_once(samples, size, ranks, accumulation, seed, by_length):
    """As many batches as there are ranks follow one another with one key and one size, and their number is known."""
    keys, lengths = unzipped(samples)
    grouped = GroupedBatches(keys, lengths, size, ranks, accumulation, seed, by_length)
    batches = list(grouped)
    assert len(batches) == len(grouped)
    for together in in_groups(batches, ranks):
        assert len(together) == ranks
        assert len({keys[number] for batch in together for number in batch}) == 1
        assert {len(batch) for batch in together} <= {len(together[0])} <= set(range(1, size + 1))


@given(SAMPLES, SIZES, SIZES, SIZES, ORDERS)
def test_a_full_step_has_one_key(samples, size, ranks, accumulation, by_length):
    """Steps of as many samples as fit come first; in none of them are kinds mixed."""
    keys, lengths = unzipped(samples)
    batches = list(GroupedBatches(keys, lengths, size, ranks, accumulation, 0, by_length))
    full = sum(count // (size * ranks * accumulation) for count in Counter(keys).values())
    for step in in_groups(batches, ranks * accumulation)[:full]:
        numbers = list(chain.from_iterable(step))
        assert len(numbers) == len(set(numbers)) == size * ranks * accumulation
        assert len({keys[number] for number in numbers}) == 1


@given(SAMPLES, SEEDS, ORDERS)
def test_sharing_a_step_among_ranks_changes_no_step(samples, seed, by_length):
    """Four samples a step are the same four, in the same order of steps, however batches, ranks and accumulation share."""
    keys, lengths = unzipped(samples)
    made = [list(GroupedBatches(keys, lengths, *factors, seed, by_length)) for factors in FACTORS]
    steps = [full_steps(batches, keys) for batches in made]
    assert steps == [steps[0]] * len(FACTORS)
    rest = [set(chain.from_iterable(batches)) - set().union(*steps[0]) for batches in made]
    assert rest == [rest[0]] * len(FACTORS)


def test_orders_are_those_of_seed_and_epoch():
    """The same seed and epoch give the same order, another one of either gives another; without a seed it never changes."""
    keys, lengths = unzipped(mixed_lengths(64) + mixed_lengths(64, "b"))

    def order(seed, epoch):
        batches = GroupedBatches(keys, lengths, 4, 2, seed=seed)
        batches.set_epoch(epoch)
        first = list(batches)
        assert list(batches) == first
        return first

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert all(one != other for place, one in enumerate(orders) for other in orders[:place])
    assert orders == [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert order(None, 0) == order(None, 1)


@pytest.mark.parametrize("by_length", [False, True])
def test_samples_meet_others_in_another_epoch(by_length):
    """An epoch shuffles samples, not only batches: most steps of the next one are of others."""
    keys, lengths = unzipped(mixed_lengths(4000))
    batches = GroupedBatches(keys, lengths, 8, seed=0, by_length=by_length)
    first = {frozenset(batch) for batch in batches}
    batches.set_epoch(1)
    assert len(first & {frozenset(batch) for batch in batches}) < 5


@pytest.mark.parametrize("by_length", [False, True])
def test_a_step_is_no_sign_of_the_next_ones_length(by_length):
    """Batches are sorted inside but come in any order: the first half of an epoch is no longer than the second."""
    keys, lengths = unzipped(mixed_lengths(4000))
    batches = list(GroupedBatches(keys, lengths, 8, seed=0, by_length=by_length))[1:]
    halves = [sum(lengths[i] for batch in half for i in batch) for half in (batches[:250], batches[250:])]
    assert 0.9 < halves[0] / halves[1] < 1.1


@pytest.mark.parametrize(
    ("factors", "by_length", "most"),
    [
        ((8, 1, 1), True, 0.03),
        ((2, 4, 1), True, 0.03),
        ((8, 2, 4), True, 0.03),
        ((4, 1, 8), False, 0.25),
        ((1, 4, 4), False, 0),
    ],
)
def test_little_of_a_batch_is_padding(factors, by_length, most):
    """On lengths that differ twentyfold, where batches drawn at random waste over half: 3 % if steps are made by length;
    of random steps no more than their batches cannot help, and nothing in batches of one."""
    keys, lengths = unzipped(mixed_lengths(4000))
    numbers = list(range(4000))
    random.Random(0).shuffle(numbers)
    assert waste(in_groups(numbers, 8), lengths) > 0.5
    assert waste(list(GroupedBatches(keys, lengths, *factors, seed=0, by_length=by_length)), lengths) <= most


def test_steps_are_drawn_at_random():
    """Unless asked otherwise a step holds short and long samples, as many batches as it may be shared out to."""
    keys, lengths = unzipped(mixed_lengths(4000))
    batches = list(GroupedBatches(keys, lengths, 1, 1, 8, seed=0))
    means = [sum(lengths[i] for batch in step for i in batch) / 8 for step in in_groups(batches, 8)]
    overall = sum(lengths) / 4000
    assert sum(abs(mean - overall) for mean in means) / len(means) < overall / 3


@given(SAMPLES, SIZES, SIZES, SIZES, st.integers(0, 9), ORDERS)
def test_the_largest_step_comes_first(samples, size, ranks, accumulation, seed, by_length):
    """Of all full steps the first one holds the longest sample, in its first batch: memory that runs out does so at once."""
    keys, lengths = unzipped(samples)
    batches = list(GroupedBatches(keys, lengths, size, ranks, accumulation, seed, by_length))
    full = sum(count // (size * ranks * accumulation) for count in Counter(keys).values())
    longest = [max(lengths[number] for number in batch) for batch in batches[: full * ranks * accumulation]]
    assert longest[:1] == sorted(longest)[-1:]


@given(SAMPLES, SIZES, SIZES, SIZES)
def test_accelerate_shares_batches_evenly(samples, size, ranks, accumulation):
    """Its shards see every sample together, take as many batches each, and at once batches of one kind and size."""
    keys, lengths = unzipped(samples)
    grouped = GroupedBatches(keys, lengths, size, ranks, accumulation, 0)
    shards = [BatchSamplerShard(grouped, ranks, rank) for rank in range(ranks)]
    shares = [list(shard) for shard in shards]
    assert [len(share) for share in shares] == [len(shard) for shard in shards] == [len(grouped) // ranks] * ranks
    assert Counter(chain(*chain(*shares))) == Counter(chain(*grouped))
    for together in zip(*shares, strict=True):
        assert len({(keys[batch[0]], len(batch)) for batch in together}) == 1


@pytest.mark.parametrize("few", range(1, 5))
def test_a_kind_with_fewer_samples_than_ranks(few):
    """Every rank gets one, some of them the same: none waits for the others."""
    keys, lengths = unzipped(mixed_lengths(16) + mixed_lengths(few, "image"))
    batches = list(GroupedBatches(keys, lengths, 2, 4, 1, 0))
    last = batches[-4:]
    assert [keys[batch[0]] for batch in batches].count("image") == 4
    assert {len(batch) for batch in last} == {1} and set(chain(*last)) == set(range(16, 16 + few))


@pytest.mark.parametrize("ranks", [1, 2])
def test_accelerate_sets_the_epoch(ranks):
    """Its loaders give the order of their own epoch, one after another or as it is set."""
    keys, lengths = unzipped(mixed_lengths(40))

    def expected(epoch):
        batches = GroupedBatches(keys, lengths, 2, ranks, seed=0)
        batches.set_epoch(epoch)
        return list(batches)[0::ranks]

    loader = DataLoader(range(40), batch_sampler=GroupedBatches(keys, lengths, 2, ranks, seed=0), collate_fn=list)
    loader = prepare_data_loader(loader, num_processes=ranks, process_index=0, put_on_device=False)
    assert len(loader) == len(expected(0))
    assert [list(loader) for _ in range(3)] == [expected(0), expected(1), expected(2)]
    loader.set_epoch(7)
    assert list(loader) == expected(7) != expected(0)
