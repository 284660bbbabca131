"""Recipes: what a file states over its parent, what is refused, and what is shipped."""

import dataclasses

import pytest

from gemma3vl_app.errors import LoadError, RecipeError
from gemma3vl_app.finetune.recipe import (
    SHIPPED,
    Recipe,
    check_recipe,
    read_recipe,
    shipped_recipes,
)
from gemma3vl_app.finetune.recipe_file import MAX_BYTES, read_yaml


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: str):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refused(name, *overrides) -> str:
    """The message of a refused recipe: always one line, without a path of this machine."""
    with pytest.raises(RecipeError) as caught:
        read_recipe(name, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    assert "/tmp" not in message
    return message


# --- files and parents ---


def test_a_file_states_what_differs_from_its_parents(write):
    write("first.yaml", "model: 12b-it\ngpus: 4\nlearning_rate: 1e-5\n")
    write("deeper/second.yaml", "parent: ../first.yaml\ngpus: 2\n")
    recipe = read_recipe(write("third.yaml", "parent: deeper/second.yaml\nepochs: 3\n"))
    assert recipe == Recipe(model="12b-it", gpus=2, learning_rate=1e-5, epochs=3)


def test_a_file_may_go_on_from_a_shipped_recipe(write):
    recipe = read_recipe(write("mine.yaml", "parent: 27b-sft\ndata: photos\n"))
    assert recipe == dataclasses.replace(read_recipe("27b-sft"), data="photos")


def test_an_empty_file_is_the_default_recipe(write):
    assert read_recipe(write("empty.yaml", "# nothing yet\n")) == Recipe()


def test_a_shipped_name_is_not_taken_from_a_file_beside(write, monkeypatch, tmp_path):
    write("4b-lora.yaml", "model: 12b-it\n")
    monkeypatch.chdir(tmp_path)
    assert read_recipe("4b-lora").model == "4b-it"
    assert read_recipe("4b-lora.yaml").model == "12b-it"


@pytest.mark.parametrize("parent", ["a.yaml", "b.yaml"])
def test_a_circle_of_parents_is_refused(write, parent):
    write("b.yaml", "parent: a.yaml\n")
    assert "its own parent" in refused(write("a.yaml", f"parent: {parent}\n"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("parent: b.yaml\n", "no recipe file 'b.yaml'"),
        ("parent: 4b-lorra\n", "Did you mean '4b-lora'?"),
        ("parent: 3\n", "parent is 3"),
        ("epochs: 1\nepochs: 2\n", "'epochs' twice, again in line 2"),
        ("columns: {a: b, a: c}\n", "'a' twice"),
        ("epochs: [\n", "no YAML in line 2"),
        ("- 4b-it\n", "no recipe"),
        ("a: &x [1]\nb: *x\n", "anchor"),
        ("epochs: !!python/object/apply:os.system [ls]\n", "epochs is ['ls']"),
        ("learning_rte: 1\n", "Did you mean 'learning_rate'?"),
        ("wholly_unknown_thing: 1\n", "'wholly_unknown_thing', which no recipe has"),
        ("gpus: two\n", "gpus is 'two' in a.yaml; it must be a valid integer"),
        ("model: 4\n", "model is 4"),
        ("train_projector: yes\n", "train_projector is 'yes'"),
        ("columns: {picture: 3}\n", "columns is"),
        ("method: full\n", "'sft', 'lora', 'dora' or 'qlora'"),
        ("max_steps: 1.5\n", "max_steps is 1.5"),
    ],
)
def test_a_wrong_file_is_refused_by_name(write, text, said):
    assert said in refused(write("a.yaml", text))


def test_a_file_that_is_no_text_or_deep_or_huge_is_refused(write, tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in refused(tmp_path / "a.yaml")
    assert "no YAML" in refused(write("b.yaml", "data: " + "[" * 5000))
    assert "too large" in refused(write("c.yaml", "#" * (MAX_BYTES + 1)))
    assert "no recipe file" in refused(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("5e-5", 5e-5), ("1", 1), ("-2.5", -2.5), ("true", True), ("null", None), ("", None)],
        *[("no", "no"), ("none", "none"), ("'1'", "1"), ("2024-01-01", "2024-01-01")],
    ],
)
def test_plain_values_are_read_as_in_yaml_12(write, text, value):
    found = read_yaml(write("a.yaml", f"key: {text}\n"))["key"]
    assert (found, type(found)) == (value, type(value))


# --- the command line ---


def test_overrides_come_last_and_are_typed():
    recipe = read_recipe("4b-lora", ["gpus=2", "learning_rate=1e-3", "epochs=2", "epochs=4"])
    assert (recipe.gpus, recipe.learning_rate, recipe.epochs) == (2, 1e-3, 4)


def test_texts_are_taken_as_they_stand():
    recipe = read_recipe("4b-lora", ["question=Is x=1: yes, or #2?", "data=123", "revision=null"])
    assert (recipe.question, recipe.data) == ("Is x=1: yes, or #2?", "123")
    assert recipe.revision is None


def test_columns_are_written_as_pairs():
    recipe = read_recipe("4b-lora", ["columns=picture:image, answer:caption"])
    assert recipe.columns == {"picture": "image", "answer": "caption"}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("epochs", "write key=value"),
        ("epoch=2", "Did you mean 'epochs'?"),
        ("parent=x", "'parent'"),
    ],
)
def test_a_wrong_override_is_refused(word, said):
    assert said in refused("4b-lora", word)


# --- what makes no sense ---

CONTRADICTIONS = [
    (["learning_rate=0"], "learning_rate is 0"),
    (["learning_rate=1e999"], "learning_rate is inf"),
    (["warmup_ratio=1"], "warmup_ratio"),
    (["lora_dropout=-0.1"], "lora_dropout"),
    (["patience=-1"], "patience"),
    (["micro_batch=0"], "micro_batch is 0"),
    (["max_steps=0"], "max_steps is 0"),
    (["gpus=3"], "1 x 3 = 3"),
    (["micro_batch=8"], "8 x 8 = 64"),
    (["train_language_model=false"], "all false"),
    (["method=sft", "train_language_model=false"], "all false"),
    (["train_projector=true"], "no linear layer"),
    (["method=sft", "lora_rank=8"], "lora_rank"),
    (["method=sft", "lora_dropout=0"], "lora_dropout"),
    (["method=qlora", "sharding=fsdp"], "4-bit"),
    (["gpus=1", "sharding=fsdp"], "nothing to share out"),
    (["eval_data=a.jsonl", "eval_fraction=0.1"], "eval_fraction"),
    (["patience=2", "eval_fraction=0"], "nothing is evaluated"),
    (["eval_split=b", "eval_fraction=0.1"], "eval_fraction"),
    (["data=a/b", "eval_data=a/b"], "What is evaluated is what is trained on"),
    (["data=a/b", "eval_split=train"], "What is evaluated is what is trained on"),
    (["columns=image:img,question:q,answer:a"], "columns names 'image'"),
    (["columns=messages:m,answer:a"], "columns names messages"),
    (["sharding=fsdp", "lora_dropout=0.1"], "drop other inputs"),
    (["max_tokens=131073"], "131,072"),
    (["model=1b-it", "train_vision_tower=true"], "text only"),
]


@pytest.mark.parametrize(("overrides", "said"), CONTRADICTIONS, ids=lambda each: str(each)[:40])
def test_contradictions_are_refused_by_name(overrides, said):
    assert said in refused("4b-lora", *overrides)


def test_what_makes_sense_beside_those_is_not_refused():
    overrides = ["sharding=fsdp", "lora_dropout=0.1", "gradient_checkpointing=false"]
    assert read_recipe("4b-lora", overrides).lora_dropout == 0.1
    overrides = ["data=a/b", "eval_split=validation", "patience=2", "data_config=en"]
    assert read_recipe("4b-lora", overrides).eval_split == "validation"


def test_what_a_parent_states_may_be_made_idle_below_it(write):
    parent = write("a.yaml", "lora_rank: 8\neval_fraction: 0.1\n")
    assert read_recipe(parent, ["method=sft", "eval_data=b.jsonl"]).method == "sft"
    child = write("b.yaml", "parent: a.yaml\nmethod: sft\n")
    assert "lora_alpha" in refused(child, "lora_alpha=4")


def test_a_recipe_from_python_is_held_to_the_same_rules():
    with pytest.raises(RecipeError, match="learning_rate"):
        check_recipe(Recipe(learning_rate=-1))
    check_recipe(Recipe())


def test_a_model_that_nobody_knows_is_refused_and_one_of_the_hub_is_not():
    with pytest.raises(LoadError, match="4b-it"):
        read_recipe("4b-lora", ["model=4b-itt"])
    assert read_recipe("4b-lora", ["model=somebody/tuned"]).model == "somebody/tuned"


def test_the_context_of_a_folder_is_known(tiny):
    assert "8,192" in refused("demo-lora", f"model={tiny}", "max_tokens=8193")


# --- what is shipped ---


@pytest.mark.parametrize("size", ["4b", "12b", "27b"])
@pytest.mark.parametrize("method", ["sft", "lora", "dora", "qlora"])
def test_the_shipped_recipes_have_the_figures_of_megatron_bridge(size, method):
    recipe = read_recipe(f"{size}-{method}")
    assert (recipe.model, recipe.method) == (f"{size}-it", method)
    assert (recipe.global_batch, recipe.max_tokens) == (32, 4096)
    assert recipe.learning_rate == (5e-5 if method == "sft" else 2e-4)
    assert recipe.gpus == (16 if (size, method) == ("27b", "sft") else 8)


def test_there_are_no_other_recipes_than_those_and_the_demo():
    assert len(shipped_recipes()) == 13
    assert read_recipe("demo-lora").model == "demo"


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_states_only_what_differs_from_its_parent(name):
    values = read_yaml(SHIPPED / f"{name}.yaml")
    parent = values.pop("parent", None)
    if parent is not None:
        above = read_recipe(parent)
        assert all(getattr(above, key) != value for key, value in values.items())
    assert values
