import itertools
import random
from dataclasses import replace

from gemma3vl_app.finetune import about_itself
from gemma3vl_app.scenes import comparisons, questions, wording
from gemma3vl_app.scenes.scene import COLOURS, SHAPES, Scene, Thing, random_scene


def thing(pair: str, x: float, y: float, size="medium", outlined=False) -> Thing:
    colour, shape = pair.split()
    return Thing(shape, colour, size, outlined, x, y, 0.1, 0.0)


SCENE = Scene(
    (
        thing("red circle", 0.1, 0.1),
        thing("blue star", 0.5, 0.5, "large"),
        thing("blue circle", 0.9, 0.9, "small", outlined=True),
    ),
    *("white", "plain", "plain", 1.0),
)


def answers(kind: str, scene: Scene = SCENE, tries: int = 300) -> dict[str, str]:
    rng = random.Random(1)
    turns = [questions.ABOUT_ONE[kind](scene, rng) for _ in range(tries)]
    return {turn.question: turn.answer for turn in turns if turn is not None}


def test_descriptions_name_every_thing_with_its_place():
    assert questions.description(SCENE) == (
        "A red circle at the top left, a large blue star in the middle and "
        "a small blue circle at the bottom right."
    )


def test_questions_are_asked_only_where_one_thing_is_meant():
    colours = answers("colour")
    assert colours["What color is the star?"] == "Blue."
    assert not any("circle" in question for question in colours)
    assert answers("shape") == {
        "What shape is red?": "A circle.",
        "Which shape is red?": "A circle.",
        "What is the red shape?": "A circle.",
        "Which shape is at the top left?": "A circle.",
        "Which shape is in the middle?": "A star.",
        "Which shape is at the bottom right?": "A circle.",
    }
    assert answers("where")["Where is the star?"] == "In the middle."
    assert answers("where")["Where is the blue circle?"] == "At the bottom right."


def test_counts_are_of_all_of_a_shape_and_of_a_colour():
    found = answers("count")
    assert found["How many shapes are there?"] == "Three."
    assert found["How many circles do you see?"] == "Two."
    assert found["How many blue shapes are there?"] == "Two."
    assert "Zero." in found.values()


def test_relations_are_told_from_the_places():
    found = answers("relation")
    assert found["Is the red circle left of or right of the star?"] == "Left."
    assert found["Is the star above or below the red circle?"] == "Below."
    assert found["Is the star below the blue circle?"] == "No."
    close = replace(SCENE, things=(thing("red circle", 0.5, 0.4), thing("blue star", 0.5, 0.5)))
    assert not answers("relation", close)  # too near to tell


def test_half_of_what_is_asked_for_is_there():
    rng = random.Random(2)
    turns = [questions.is_there(random_scene(rng), rng) for _ in range(2_000)]
    share = sum(turn.answer == "Yes." for turn in turns) / len(turns)
    assert 0.46 < share < 0.54
    assert answers("is_there")["Is there a blue circle?"] == "Yes."
    assert answers("is_there")["Is there a red star?"] == "No."


def test_what_is_not_there_cannot_be_told():
    assert set(answers("not_there").values()) == {questions.CANNOT_TELL}
    assert not any("star" in question for question in answers("not_there"))


def test_follow_ups_are_about_the_thing_of_the_question_before():
    rng = random.Random(3)
    for _ in range(300):
        asked = questions.turns(SCENE, rng, 5)
        for before, turn in itertools.pairwise(asked):
            if turn.kind == "follow_up" and turn.question == "Where is it?":
                meant = [t for t in SCENE.things if t.colour in before.question]
                assert [f"{t.place.capitalize()}." for t in meant] == [turn.answer]


def test_a_share_of_counts_and_relations_can_be_asked_alone():
    assert not any("shapes" in q.split()[2:3] for q in answers("count_some"))
    assert set(answers("yes_or_no").values()) == {"Yes.", "No."}
    assert answers("yes_or_no")["Is the star left of the red circle?"] == "No."


def test_turns_are_of_the_kinds_that_they_are_to_be_of():
    rng = random.Random(5)
    for _ in range(50):
        asked = questions.turns(SCENE, rng, 4, {"yes_or_no": 5, "colour": 1, "count_some": 2})
        assert {turn.kind for turn in asked} <= {"relation", "colour", "count"}
        assert not any(" or " in turn.question for turn in asked)


def test_no_more_is_asked_about_how_things_lie_than_there_are_things():
    rng = random.Random(6)
    for _ in range(50):
        asked = questions.turns(SCENE, rng, 6, {"yes_or_no": 30, "count_some": 1, "describe": 1})
        assert sum(turn.kind == "relation" for turn in asked) <= len(SCENE.things)


def test_questions_about_several_pictures_have_one_right_answer():
    more = SCENE
    less = replace(SCENE, things=SCENE.things[:1])
    rng = random.Random(4)
    found = [comparisons.about_several((more, less), rng) for _ in range(400)]
    said = {turn.question: turn.answer for turn in found if turn is not None}
    assert said["Which picture has more shapes?"] == "The first."
    assert said["Which picture has fewer shapes?"] == "The second."
    assert said["Which picture has a blue star?"] == "The first."
    assert "Which picture has a red circle?" not in said  # both have
    assert said["What color is the circle in the second picture?"] == "Red."


def test_pictures_are_compared_in_words_by_their_numbers():
    less = replace(SCENE, things=(thing("red circle", 0.1, 0.1),))
    other = replace(SCENE, things=(thing("pink heart", 0.1, 0.1),))
    assert comparisons.comparison((SCENE, less)).answer == (
        "Picture 1 shows a red circle, a blue star and a blue circle. "
        "Picture 2 shows a red circle. Each shows a circle. Picture 1 has the most shapes."
    )
    assert comparisons.comparison((less, other)).answer == (
        "Picture 1 shows a red circle. Picture 2 shows a pink heart. They have no shape in common."
    )


def test_in_detail_the_background_and_outlines_are_told():
    rng = random.Random(5)
    assert questions.describe_in_detail(SCENE, rng).answer == (
        "There are three shapes on a white background: a red circle at the top left, a large blue "
        "star in the middle and a small outlined blue circle at the bottom right."
    )
    one = replace(SCENE, things=SCENE.things[:1], fill="graded")  # what colour, nobody could say
    answer = questions.describe_in_detail(one, rng).answer
    assert answer == "There is one shape: a red circle at the top left."
    assert set(answers("background").values()) == {"White."}
    assert not answers("background", one)


def test_what_lies_somewhere_or_is_the_largest_is_one_thing():
    things = [replace(t, radius=r) for t, r in zip(SCENE.things, (0.1, 0.2, 0.09), strict=True)]
    found = answers("what_is", replace(SCENE, things=tuple(things)))
    assert found["What is in the middle?"] == "A large blue star."
    assert found["Which shape is the largest?"] == "A blue star."
    assert not any("smallest" in question for question in found)  # nearly as small as another


def test_other_words_are_still_the_same_question():
    rng = random.Random(6)
    said = {
        wording.in_other_words("What color is the circle in the picture?", rng) for _ in range(500)
    }
    assert "What colour is the circle in the picture?" in said
    assert "what color is the circle in the drawing" in said
    assert {each.lower().rstrip("?").split()[4] for each in said} == {"circle"}


def test_no_question_about_itself_has_two_answers():
    questions = [question for question, _ in about_itself.turns()]
    assert len(questions) == len(set(questions)) >= 200
    assert about_itself.NO_PICTURE not in {answer for _, answer in about_itself.at_any_time()}


def test_shapes_and_colours_it_says_it_knows_are_those_it_knows():
    assert all(shape in about_itself.SHAPES_KNOWN for shape in SHAPES)
    assert all(colour in about_itself.COLOURS_KNOWN for colour in COLOURS)
