from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from singlestrip_bids.selection import Candidate, top_k

candidates = st.lists(
    st.builds(
        Candidate,
        scan=st.text("abc", min_size=1, max_size=4),
        score=st.sampled_from([0.0, 0.5, 0.9, 0.91]),
        agreement=st.sampled_from([None, 0.4, 0.95]),
        volume_ml=st.sampled_from([0.0, 1.0, 1500.0]),
    ),
    unique_by=lambda c: c.scan,
    max_size=12,
)


def kept(given_: list[Candidate], k: int) -> list[str]:
    return [c.scan for c in top_k(given_, k) if c.kept]


def test_best_scores_in_the_order_given():
    pool = [
        Candidate(*row, None, 1500) for row in (("c", 0.8), ("a", 0.95), ("d", 0.7), ("b", 0.9))
    ]
    assert kept(pool, 3) == ["c", "a", "b"]
    assert kept(pool, 0) == []
    assert [c.scan for c in top_k(pool, 3)] == ["c", "a", "d", "b"]


def test_ties_by_name_whatever_the_order():
    pool = [Candidate(name, 0.9, None, 1500) for name in "dbca"]
    assert set(kept(pool, 2)) == set(kept(pool[::-1], 2)) == {"a", "b"}


def test_agreement_counts_as_much_as_the_score():
    pool = [Candidate("a", 0.97, 0.80, 1500), Candidate("b", 0.95, 0.90, 1500)]
    assert kept(pool, 1) == ["b"]
    assert [c.rank for c in pool] == [pytest.approx(0.885), pytest.approx(0.925)]


def test_each_contrast_by_its_share():
    scores = {"T1w": (0.99, 0.98, 0.97, 0.96), "T2w": (0.5, 0.4), "bold": (0.1,)}
    pool = [
        Candidate(f"sub-{i}/anat/sub-{i}_{suffix}.nii.gz", score, None, 1500)
        for suffix, row in scores.items()
        for i, score in enumerate(row)
    ]
    names = [name.split("/")[-1].split(".")[0] for name in kept(pool, 4)]
    assert names == ["sub-0_T1w", "sub-1_T1w", "sub-0_T2w", "sub-0_bold"]
    assert len(kept(pool, 7)) == 7
    assert {c.contrast for c in pool} == set(scores)


def test_empty_mask_is_never_kept():
    pool = [Candidate("a", 1.0, None, 0), Candidate("b", 0.1, None, 3)]
    assert kept(pool, 10) == ["b"]


def test_earlier_choice_is_forgotten():
    pool = [Candidate("a", 0.2, None, 3, kept=True), Candidate("b", 0.9, None, 3)]
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
    assert all((-c.rank, c.scan) < (-d.rank, d.scan) for c in chosen for d in left)
