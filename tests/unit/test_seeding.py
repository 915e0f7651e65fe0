"""Seeds are functions of the run's seed and the draw's purpose, and of nothing else."""

from __future__ import annotations

import torch

from kif_lightning.seeding import derive_seed, generator


def test_seeds_stay_what_they_are_in_every_process_and_version() -> None:
    # sha256("1"), sha256("1/shape/row order/0"): first four bytes, big endian, halved.
    assert derive_seed(1) == 0x6B86B273 // 2
    assert derive_seed(1, "shape", "row order", 0) == 155745997
    assert generator(1, "shape").initial_seed() == derive_seed(1, "shape") == 160563142


def test_every_part_of_the_purpose_counts() -> None:
    purposes = [
        (1, "a", "order", 0),
        (2, "a", "order", 0),
        (1, "b", "order", 0),
        (1, "a", "rows", 0),
        (1, "a", "order", 1),
        (1, "order", "a", 0),
        (1, "a", "order"),
        (1,),
    ]
    assert len({derive_seed(*purpose) for purpose in purposes}) == len(purposes)


def test_seeds_fill_31_bits() -> None:
    seeds = [derive_seed(0, "draw", i) for i in range(2000)]
    assert all(0 <= seed < 1 << 31 for seed in seeds)
    assert max(seeds) > 0.99 * (1 << 31)
    assert len(set(seeds)) == len(seeds)


def test_a_generator_is_fresh_each_time() -> None:
    first = torch.rand(5, generator=generator(7, "x"))
    assert torch.equal(torch.rand(5, generator=generator(7, "x")), first)
    assert not torch.equal(torch.rand(5, generator=generator(7, "y")), first)


def test_the_global_random_state_is_neither_read_nor_moved() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = torch.randperm(9, generator=generator(3, "rows")).tolist()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.randperm(9, generator=generator(3, "rows")).tolist() == first
