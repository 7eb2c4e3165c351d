"""Which member gets a request."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, strategies as st

from raylaunch.gateway.gateway_messages import GatewayOptions, Member
from raylaunch.gateway.relay.balancer import Balancer, Candidate, Wish
from raylaunch.gateway.relay.member_table import MemberTable
from raylaunch.gateway.relay.prefix_index import BLOCK_BYTES, PrefixIndex, prefix_hashes

LONG = b"a" * (3 * BLOCK_BYTES)


def table(*members: Member, **options) -> MemberTable:
    made = MemberTable(GatewayOptions(**options), asyncio.get_running_loop().time)
    made.configure(members)
    return made


def member(name: str, **fields) -> Member:
    return Member(id=name, url=f"http://{name}", **fields)


def taken(members: MemberTable, wish: Wish | None = None) -> str:
    lease = members.take(wish or Wish(), suspects=False)
    assert lease is not None
    return lease.member.id


def test_the_least_loaded_member_is_chosen_and_equal_ones_take_turns():
    candidates = [Candidate("a", 2, 1), Candidate("b", 1, 5), Candidate("c", 1, 3)]
    assert Balancer().choose(candidates, Wish()) == "c"


def test_round_robin_ignores_the_load():
    candidates = [Candidate("a", 9, 1), Candidate("b", 0, 2)]
    assert Balancer("round-robin").choose(candidates, Wish()) == "a"


@given(st.text(min_size=1), st.sets(st.sampled_from("abcdefgh"), min_size=2))
def test_a_session_stays_where_it_is_when_another_member_leaves(session, names):
    balancer = Balancer("sticky")
    wish = Wish(session=session)
    candidates = [Candidate(name, 0, 0) for name in sorted(names)]
    chosen = balancer.choose(candidates, wish)
    for gone in names - {chosen}:
        rest = [one for one in candidates if one.id != gone]
        assert balancer.choose(rest, wish) == chosen


def test_a_prompt_goes_where_its_prefix_was_computed():
    balancer = Balancer("prefix-aware")
    idle = [Candidate("a", 0, 1), Candidate("b", 0, 2)]
    first = balancer.choose(idle, Wish(prefix=prefix_hashes(LONG)))
    busier = [Candidate("a", 3, 1), Candidate("b", 0, 2)]
    longer = Wish(prefix=prefix_hashes(LONG + b"b" * BLOCK_BYTES))
    assert (first, balancer.choose(busier, longer)) == ("a", "a")


def test_a_prefix_is_not_followed_into_a_queue():
    balancer = Balancer("prefix-aware")
    wish = Wish(prefix=prefix_hashes(LONG))
    balancer.prefixes.add(wish.prefix, "a")
    assert balancer.choose([Candidate("a", 50, 1), Candidate("b", 1, 2)], wish) == "b"


def test_short_prompts_share_no_block():
    assert prefix_hashes(b"x" * (BLOCK_BYTES - 1)) == []


def test_a_prefix_covers_all_blocks_before_it():
    same_second_block = b"b" * BLOCK_BYTES + LONG[BLOCK_BYTES:]
    assert not set(prefix_hashes(LONG)) & set(prefix_hashes(same_second_block))


def test_old_prefixes_are_forgotten():
    index = PrefixIndex(max_entries=2)
    for number in range(3):
        index.add([bytes([number])], "a")
    assert len(index) == 2
    assert index.find([bytes([0])], {"a"}) is None


def test_a_prefix_of_a_member_that_is_gone_is_not_followed():
    index = PrefixIndex()
    index.add([b"1"], "a")
    index.add([b"2"], "b")
    assert index.find([b"1", b"2"], {"a"}) == "a"


async def test_requests_past_the_gateway_count_as_load():
    members = table(member("a", running=5, waiting=1), member("b", running=2))
    assert [taken(members), taken(members)] == ["b", "b"]


async def test_load_is_counted_per_rank_and_weight():
    members = table(member("a", running=6, ranks=(0, 1, 2)), member("b", running=3))
    assert taken(members) == "a"
    heavy = table(member("a", running=6, weight=4.0), member("b", running=3))
    assert taken(heavy) == "a"


async def test_a_rank_is_reached_where_it_lives():
    members = table(member("a", ranks=(0, 1)), member("b", ranks=(2, 3)))
    assert taken(members, Wish(rank=3)) == "b"
    assert taken(members, Wish(rank=99)) in ("a", "b")


@pytest.mark.parametrize("state", ["draining", "down"])
async def test_only_ready_members_get_requests(state):
    members = table(member("a", state=state), member("b"))
    assert {taken(members) for _ in range(4)} == {"b"}
    members.configure([member("b", state=state)])
    assert members.take(Wish(), suspects=True) is None


async def test_a_suspect_comes_after_the_others_but_is_never_given_up():
    members = table(member("a"), member("b"))
    lease = members.take(Wish(), suspects=False)
    assert lease is not None
    members.suspect(lease)
    other = {"a": "b", "b": "a"}[lease.member.id]
    assert {taken(members) for _ in range(4)} == {other}
    members.configure([member(lease.member.id)])
    assert members.take(Wish(), suspects=False) is None
    assert members.take(Wish(), suspects=True) is not None


async def test_a_member_that_becomes_ready_again_is_no_suspect():
    members = table(member("a"))
    lease = members.take(Wish(), suspects=False)
    assert lease is not None
    members.suspect(lease)
    members.configure([member("a", state="down")])
    members.configure([member("a")])
    assert members.take(Wish(), suspects=False) is not None
