"""Ways through the tree: what is shown, what is beside it, and under which system text."""

from gemma3vl_app.export.branches import leaves, others, path_to, paths, side_branches, systems
from gemma3vl_app.transcript import ROOT, Transcript, Turn
from tests.export.chats import EVERYDAY, assistant, user


def test_every_turn_is_shown_or_in_exactly_one_branch():
    deep = Transcript(
        (
            Turn(user("a"), ROOT),
            Turn(assistant("b"), 0),
            Turn(user("c"), 1),
            Turn(user("d"), 1),
            Turn(assistant("e"), 3),
            Turn(assistant("f"), 3),
            Turn(user("g"), ROOT),
        ),
        head=2,
    )
    branches = side_branches(deep)
    assert [(b.turns, b.position, b.depth) for b in branches] == [
        ((6,), 0, 0),
        ((3, 4), 2, 2),
        ((5,), 2, 3),  # a version of a version stands with it
    ]
    seen = [*path_to(deep, deep.head), *(turn for b in branches for turn in b.turns)]
    assert sorted(seen) == list(range(7))


def test_what_follows_the_head_is_a_continuation():
    back = Transcript(EVERYDAY.turns, head=2)
    branches = side_branches(back)
    assert [(b.turns, b.position) for b in branches] == [((1,), 1), ((3, 4), 2), ((5, 6), 2)]
    assert others(branches, 2, 2, shown=True) == "2 continuations"
    assert others(branches, 1, 2, shown=False) == "1 other version, not shown"
    assert others(branches, 0, 2, shown=True) == ""
    start = Transcript(EVERYDAY.turns, head=ROOT)
    assert {b.position for b in side_branches(start)} == {0}


def test_paths_lead_to_every_end_the_shown_one_first():
    assert leaves(EVERYDAY) == [1, 4, 6]
    assert paths(EVERYDAY, branches=False) == [[0, 2, 5, 6]]
    assert paths(EVERYDAY, branches=True) == [[0, 2, 5, 6], [0, 1], [0, 2, 3, 4]]


def test_the_system_text_of_a_turn_is_that_of_the_next_answer():
    assert systems(EVERYDAY, [0, 1]) == ["Answer briefly."] * 2
    asked = Transcript((*EVERYDAY.turns, Turn(user("?"), 1)), head=7, system="New.")
    assert systems(asked, [0, 1, 7]) == ["Answer briefly.", "Answer briefly.", "New."]


def test_a_deep_tree_takes_no_recursion():
    turns = tuple(Turn(user("x"), at // 2 * 2 - 1) for at in range(4000))
    assert len(side_branches(Transcript(turns, head=3999))) >= 1
