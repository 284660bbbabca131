import itertools
import random
from dataclasses import replace

from gemma3vl_app.finetune import about_itself, scene_questions
from gemma3vl_app.finetune.scenes import Scene, Thing, random_scene


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
    turns = [scene_questions.ABOUT_ONE[kind](scene, rng) for _ in range(tries)]
    return {turn.question: turn.answer for turn in turns if turn is not None}


def test_descriptions_name_every_thing_with_its_place():
    assert scene_questions.description(SCENE) == (
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
    turns = [scene_questions.is_there(random_scene(rng), rng) for _ in range(2_000)]
    share = sum(turn.answer == "Yes." for turn in turns) / len(turns)
    assert 0.46 < share < 0.54
    assert answers("is_there")["Is there a blue circle?"] == "Yes."
    assert answers("is_there")["Is there a red star?"] == "No."


def test_what_is_not_there_cannot_be_told():
    assert set(answers("not_there").values()) == {scene_questions.CANNOT_TELL}
    assert not any("star" in question for question in answers("not_there"))


def test_follow_ups_are_about_the_thing_of_the_question_before():
    rng = random.Random(3)
    for _ in range(300):
        asked = scene_questions.turns(SCENE, rng, 5)
        for before, turn in itertools.pairwise(asked):
            if turn.kind == "follow_up" and turn.question == "Where is it?":
                meant = [t for t in SCENE.things if t.colour in before.question]
                assert [f"{t.place.capitalize()}." for t in meant] == [turn.answer]


def test_questions_about_several_pictures_have_one_right_answer():
    more = SCENE
    less = replace(SCENE, things=SCENE.things[:1])
    rng = random.Random(4)
    found = [scene_questions.about_several((more, less), rng) for _ in range(400)]
    said = {turn.question: turn.answer for turn in found if turn is not None}
    assert said["Which picture has more shapes?"] == "The first."
    assert said["Which picture has fewer shapes?"] == "The second."
    assert said["Which picture has a blue star?"] == "The first."
    assert "Which picture has a red circle?" not in said  # both have
    assert said["What color is the circle in the second picture?"] == "Red."


def test_no_question_about_itself_has_two_answers():
    questions = [question for question, _ in about_itself.turns()]
    assert len(questions) == len(set(questions)) >= 80
