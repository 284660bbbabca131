"""A folder appears whole or not at all, nothing is overwritten, and what stopped goes on."""

import json
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock

import gemma3vl_app as gv
from gemma3vl_app.conversion import shard_files, work_folder
from gemma3vl_app.conversion.converting import Bridge, convert
from gemma3vl_app.conversion.formats import FORMATS
from gemma3vl_app.conversion.options import Options
from gemma3vl_app.errors import ConversionError
from gemma3vl_app.generation import Progress
from tests.conversion.conftest import assert_same_bits, stored_as, weights_of, with_config

SHARDS = 60_000  # bytes: the small checkpoint takes some twenty files


def files_in(folder):
    return {each.name: each.read_bytes() for each in folder.iterdir()}


def stopping_after(files, error):
    """A progress function that raises `error` when more than so many files are begun."""
    begun = set()

    def stop(step):
        if step.message.startswith("Writing "):
            begun.add(step.message)
            if len(begun) > files:
                raise error

    return stop


@pytest.fixture
def work(tmp_path):
    return work_folder.work_folder_of(tmp_path / "out")


def test_a_killed_conversion_goes_on_without_writing_finished_files_again(small, tmp_path, work):
    to = "transformers5"
    arguments = [str(small), str(tmp_path / "out"), to, str(SHARDS), "5"]
    command = [sys.executable, "-m", "tests.conversion.interrupted", *arguments]
    done = subprocess.run(command, timeout=300, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    finished = {path.name: path.stat() for path in work.glob("*.safetensors")}
    assert len(finished) == 5
    assert len([*work.glob("*" + shard_files.UNFINISHED)]) == 1
    steps = []
    out = convert(small, tmp_path / "out", to, shard_bytes=SHARDS, progress=steps.append)
    for name, before in finished.items():
        after = (out / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert {step.message for step in steps if "is there already" in step.message} == {
        f"{name} is there already" for name in finished
    }
    uninterrupted = convert(small, tmp_path / "at-once", to, shard_bytes=SHARDS)
    assert files_in(out) == files_in(uninterrupted)
    assert not work.exists()


def test_another_recipe_begins_anew(small, tmp_path, work):
    with pytest.raises(KeyboardInterrupt):
        convert(
            small,
            tmp_path / "out",
            shard_bytes=SHARDS,
            progress=stopping_after(5, KeyboardInterrupt),
        )
    assert len([*work.glob("*.safetensors")]) == 5
    steps = []
    out = convert(small, tmp_path / "out", "transformers5", progress=steps.append)
    assert not [step for step in steps if "already" in step.message]
    assert [path.name for path in out.glob("*.safetensors")] == ["model.safetensors"]


def test_a_source_that_has_changed_begins_anew(small, tmp_path, work):
    source = shutil.copytree(small, tmp_path / "source")
    again = partial(convert, source, tmp_path / "out", shard_bytes=SHARDS)
    with pytest.raises(KeyboardInterrupt):
        again(progress=stopping_after(5, KeyboardInterrupt))
    data = bytearray((source / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (source / "model.safetensors").write_bytes(data)
    out = again()
    assert_same_bits(weights_of(out), weights_of(source))


def test_a_damaged_unfinished_file_is_written_again(small, tmp_path, work):
    again = partial(convert, small, tmp_path / "out", shard_bytes=SHARDS)
    with pytest.raises(KeyboardInterrupt):
        again(progress=stopping_after(3, KeyboardInterrupt))
    first = min(work.glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-1])
    out = again(check=True)
    assert_same_bits(weights_of(out), weights_of(small))


def test_nothing_is_overwritten(small, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ConversionError, match="'out' is there already"):
        convert(small, tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]


def test_a_link_is_not_replaced(small, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "out").symlink_to("empty")
    with pytest.raises(ConversionError, match="'out' is there already"):
        convert(small, tmp_path / "out")


def test_an_empty_folder_is_filled(small, tmp_path):
    (tmp_path / "out").mkdir()
    assert (convert(small, tmp_path / "out") / "model.safetensors").is_file()


def test_too_small_a_disk_is_said_before_anything_is_written(small, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free=1 << 20))
    with pytest.raises(ConversionError, match=r"needs 0\.1 GiB of disk space, and 0\.0 GiB are"):
        convert(small, tmp_path / "out")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("to", [name for name in FORMATS if name != "merged"])
def test_the_room_that_is_asked_for_is_what_the_weights_take(few_tokens, tmp_path, to):
    bridge = Bridge.open(few_tokens)
    asked = FORMATS[to].writer().needs_bytes(bridge.source, Options())
    out = bridge.write(tmp_path / "out", to)
    kinds = (".safetensors", ".gguf", ".distcp")
    written = sum(path.stat().st_size for path in out.rglob("*") if path.suffix in kinds)
    of_a_tensor = 2000 if to == "megatron" else 700  # bytes at most: its entries in headers
    assert asked < written < asked + of_a_tensor * len(bridge.source.tensors)


def test_a_disk_that_fills_up_keeps_what_is_finished(small, tmp_path, work):
    full = OSError(28, "No space left on device")
    with pytest.raises(ConversionError, match=r"No space left on device.* goes on where"):
        convert(small, tmp_path / "out", shard_bytes=SHARDS, progress=stopping_after(4, full))
    assert len([*work.glob("*.safetensors")]) == 4


def test_two_at_once_do_not_write_into_each_other(small, tmp_path, work):
    with FileLock(f"{work}.lock"), pytest.raises(ConversionError, match="Another process"):
        convert(small, tmp_path / "out")


def test_a_check_notices_one_wrong_bit_and_leaves_nothing(small, tmp_path, work):
    def flip_a_bit(step):
        if (step.stage, step.done) == ("check", 0):
            data = bytearray((work / "model.safetensors").read_bytes())
            data[-1] ^= 1
            (work / "model.safetensors").write_bytes(data)

    with pytest.raises(ConversionError, match=r"was written wrongly: it is not what the source"):
        convert(small, tmp_path / "out", check=True, progress=flip_a_bit)
    assert not [*tmp_path.glob("*")]
    assert not work.exists()


def test_settings_and_files_of_the_tokenizer_are_kept(small, tmp_path):
    source = shutil.copytree(small, tmp_path / "source")
    extra = {"chat_template.jinja": "{{ x }}", "tokenizer_config.json": "{}"}
    extra["processor_config.json"] = '{"a": 1}'
    for name, text in extra.items():
        (source / name).write_text(text)
    with_config(source, something_of_its_own=[1, 2])
    out = convert(source, tmp_path / "out", "transformers5")
    for name in (*extra, "generation_config.json", "preprocessor_config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    assert json.loads((out / "config.json").read_text())["something_of_its_own"] == [1, 2]


def test_the_record_says_where_it_came_from(small, tmp_path):
    there = convert(small, tmp_path / "there", "transformers5", check=True)
    back = convert(there, tmp_path / "back", precision="fp32")
    record = json.loads((back / "conversion.json").read_text())
    assert record["source"] == "there"
    assert record["revision"] == Bridge.open(there).source.revision
    assert (record["format"], record["precision"], record["checked"]) == ("hub", "fp32", False)
    assert record["detected"]["names"] == "transformers 5's names"
    assert record["versions"].keys() >= {"torch", "gemma3vl-app"}
    assert record["source_conversion"]["source"] == "small"
    assert record["source_conversion"]["checked"] is True
    assert str(tmp_path) not in json.dumps(record)


def test_files_have_at_most_the_size_that_is_asked_for(small, tmp_path):
    out = convert(small, tmp_path / "out", shard_bytes=SHARDS)
    sizes = {path.name: path.stat().st_size for path in out.glob("*.safetensors")}
    table = weights_of(small)["language_model.model.embed_tokens.weight"].nbytes
    assert sorted(sizes.values())[-2] < SHARDS + 10_000  # a header, too
    assert max(sizes.values()) == pytest.approx(table, abs=10_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert {*index["weight_map"].values()} == {*sizes}
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in weights_of(small).values())


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"to": "hubb"}, "Did you mean 'hub'"),
        ({"precision": "fp16"}, "Known are stored, bf16, fp32"),
        ({"shard_bytes": 0}, "at least one byte"),
        ({"to": "gguf", "shard_bytes": 1 << 30}, "'gguf' is not cut into shards"),
        ({"to": "megatron", "shard_bytes": 2 << 30}, "'megatron' is not cut into shards"),
        ({"to": "merged"}, "adapter='FOLDER'"),
    ],
)
def test_a_wish_that_cannot_be_met_is_said_before_the_source_is_looked_for(wish, said, tmp_path):
    with pytest.raises(ConversionError, match=said):
        convert("no/such-model", tmp_path / "out", **wish)


def test_a_bridge_shows_what_it_opened_and_gives_single_weights(small):
    bridge = gv.Bridge.open(small)
    assert bridge.config["model_type"] == "gemma3"
    assert bridge.tensor("model.language_model.norm.weight").shape == (64,)
    with pytest.raises(ConversionError, match="has no 'nothing'"):
        bridge.tensor("nothing")


def test_the_function_of_the_table_of_contents_stays_one(small, tmp_path):
    progress = []
    for number in (1, 2):  # a folder of that name would take its place after the first use
        gv.convert(small, tmp_path / str(number), progress=progress.append)
    assert progress[-1] == Progress("convert", 1, 1, "folders", "2 is ready")


def test_finished_work_is_kept_where_the_last_step_fails(small, tmp_path, work, monkeypatch):
    refused = OSError(16, "Device or resource busy")

    def rename(path, target):
        if path == work:
            raise refused
        return renamed(path, target)

    renamed = Path.rename
    with monkeypatch.context() as patched, pytest.raises(ConversionError, match="goes on where"):
        patched.setattr(Path, "rename", rename)
        convert(small, tmp_path / "out")
    steps = []
    convert(small, tmp_path / "out", progress=steps.append)
    assert [step for step in steps if "is there already" in step.message]
    assert not work_folder.note_of(tmp_path / "out").exists()


def test_where_a_disk_is_mounted_is_no_target(small, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "out")
    with pytest.raises(ConversionError, match="Name a folder inside it"):
        convert(small, tmp_path / "out")


def test_a_file_of_the_source_that_is_gone_is_not_blamed_on_the_target(tmp_path):
    with (
        pytest.raises(ConversionError, match=r"'gone\.json' of the source cannot be read"),
        work_folder.growing_folder(tmp_path / "out", {}, 0),
    ):
        (tmp_path / "gone.json").read_text()


def test_where_there_is_no_room_no_folder_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "free")(0))
    growing = work_folder.growing_folder(tmp_path / "a" / "b" / "out", {}, 1000)
    with pytest.raises(ConversionError, match="disk space"), growing:
        pass
    assert not (tmp_path / "a").exists()


def test_the_note_is_not_written_again(tmp_path):
    note = work_folder.note_of(tmp_path / "out")
    for _ in range(2):
        with pytest.raises(ValueError), work_folder.growing_folder(tmp_path / "out", {}, 0):
            before = note.stat()
            raise ValueError
    assert note.stat().st_mtime_ns == before.st_mtime_ns


def test_room_counts_what_lies_deeper_and_passes_over_dangling_links(tmp_path, work, monkeypatch):
    (work / "release").mkdir(parents=True)
    (work / "release" / "weights").write_bytes(bytes(1000))
    (work / "dangling").symlink_to("nowhere")
    free = work_folder.SMALL_FILES_BYTES
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "free")(free))
    work_folder.check_room(tmp_path / "out", 1000)
    with pytest.raises(ConversionError, match="disk space"):
        work_folder.check_room(tmp_path / "out", 1001)


def test_another_tokenizer_config_begins_anew(small, tmp_path, work):
    source = shutil.copytree(small, tmp_path / "source")
    again = partial(convert, source, tmp_path / "out", shard_bytes=SHARDS)
    with pytest.raises(KeyboardInterrupt):
        again(progress=stopping_after(5, KeyboardInterrupt))
    (source / "tokenizer_config.json").write_text("{}")
    steps = []
    again(progress=steps.append)
    assert not [step for step in steps if "is there already" in step.message]


def test_an_unreadable_record_of_the_source_is_left_out(small, tmp_path):
    source = shutil.copytree(small, tmp_path / "source")
    (source / "conversion.json").write_text("{")
    out = convert(source, tmp_path / "out")
    assert json.loads((out / "conversion.json").read_text())["source_conversion"] is None


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_an_impossible_name_of_a_target_is_refused(name, tmp_path):
    with pytest.raises(ConversionError, match="cannot be written"):
        convert("no/such-model", tmp_path / name)


def test_names_of_transformers_4_in_memory_are_read(small, tmp_path):
    def change(weights):
        return {
            key.replace("language_model.model.", "model.language_model.")
            .replace("vision_tower.", "model.vision_tower.")
            .replace("multi_modal_projector.", "model.multi_modal_projector."): each
            for key, each in weights.items()
        }

    source = stored_as(tmp_path / "source", small, change)
    assert_same_bits(weights_of(convert(source, tmp_path / "out")), weights_of(small))
