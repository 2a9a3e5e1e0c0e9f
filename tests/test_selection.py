from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from singlestrip_bids.selection import Candidate, top_k

candidates = st.lists(
    st.builds(
        Candidate,
        scan=st.text("abc", min_size=1, max_size=4),
        score=st.sampled_from([0.0, 0.5, 0.9, 0.91]),
        volume_ml=st.sampled_from([0.0, 1.0, 1500.0]),
    ),
    unique_by=lambda c: c.scan,
    max_size=12,
)


def kept(given_: list[Candidate], k: int) -> list[str]:
    return [c.scan for c in top_k(given_, k) if c.kept]


def test_best_scores_in_the_order_given():
    pool = [Candidate(*row, 1500) for row in (("c", 0.8), ("a", 0.95), ("d", 0.7), ("b", 0.9))]
    assert kept(pool, 3) == ["c", "a", "b"]
    assert kept(pool, 0) == []
    assert [c.scan for c in top_k(pool, 3)] == ["c", "a", "d", "b"]


def test_ties_by_name_whatever_the_order():
    pool = [Candidate(name, 0.9, 1500) for name in "dbca"]
    assert set(kept(pool, 2)) == set(kept(pool[::-1], 2)) == {"a", "b"}


def test_empty_mask_is_never_kept():
    pool = [Candidate("a", 1.0, 0), Candidate("b", 0.1, 3)]
    assert kept(pool, 10) == ["b"]


def test_earlier_choice_is_forgotten():
    pool = [Candidate("a", 0.2, 3, kept=True), Candidate("b", 0.9, 3)]
    assert kept(pool, 1) == ["b"]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(pool=candidates, k=st.integers(0, 14))
def test_properties(pool, k):
    marked = top_k(pool, k)
    assert [(c.scan, c.score, c.volume_ml, c.note) for c in marked] == [
        (c.scan, c.score, c.volume_ml, c.note) for c in pool
    ]
    usable = [c for c in marked if c.volume_ml > 0]
    chosen = [c for c in marked if c.kept]
    assert len(chosen) == min(k, len(usable))
    assert all(c.volume_ml > 0 for c in chosen)
    left = [c for c in usable if not c.kept]
    assert all((-c.score, c.scan) < (-d.score, d.scan) for c in chosen for d in left)
