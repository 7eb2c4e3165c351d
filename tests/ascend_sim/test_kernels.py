"""The simulated operators against the mathematics that they stand for."""

from __future__ import annotations

import pytest
import torch
from torch_npu import kernels

TOKENS, EXPERTS, CHOICES, WIDTH = 7, 6, 2, 4


@pytest.fixture
def routed():
    """Rows, each row's experts and their weights, and the matrix of each expert."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.rand(*shape, generator=generator)

    chosen = draw(TOKENS, EXPERTS).topk(CHOICES, -1)[1]
    return draw(TOKENS, WIDTH), chosen, draw(TOKENS, CHOICES), draw(EXPERTS, WIDTH, WIDTH)


def run_range(routed, first, last):
    """What the rank that holds the experts from `first` to `last` adds, as vllm-ascend asks it."""
    rows, chosen, weights, matrices = routed
    here = (chosen >= first) & (chosen < last)
    permuted, places, counts, _ = kernels.init_routing(
        rows, chosen, expert_num=EXPERTS, active_expert_range=[first, last]
    )
    (done,) = kernels.grouped_matmul([permuted], [matrices[first:last]], group_list=counts)
    return kernels.unpermute(done, places, weights * here)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_experts_on_several_ranks_add_up_to_all_experts(routed, ranks):
    rows, chosen, weights, matrices = routed
    expected = torch.stack(
        [
            sum(weights[token, n] * (rows[token] @ matrices[chosen[token, n]]) for n in range(2))
            for token in range(TOKENS)
        ]
    )
    share = EXPERTS // ranks
    parts = [run_range(routed, first, first + share) for first in range(0, EXPERTS, share)]
    torch.testing.assert_close(sum(parts), expected)


def test_only_likely_tokens_are_kept():
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]]).log()
    by_count = kernels.keep_likely(logits, k=torch.tensor([1, 3])).isfinite()
    assert by_count.tolist() == [[False, False, False, True], [True, True, True, False]]
    by_chance = kernels.keep_likely(logits, p=torch.tensor([0.5, 0.05])).isfinite()
    assert by_chance.tolist() == [[False, False, True, True], [True, False, False, False]]
