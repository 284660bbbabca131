"""The launch files say what accelerate and torchrun understand, and what training itself does."""

import os
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.run import get_args_parser

import gemma3vl_app.finetune
from gemma3vl_app.errors import TrainingError
from gemma3vl_app.finetune.processes import check_launch
from gemma3vl_app.finetune.recipe import Recipe, read_recipe
from gemma3vl_app.finetune.trainer import fsdp_settings, sharded_layers, training_arguments

LAUNCH = Path(gemma3vl_app.finetune.__file__).parent / "launch"
FILES = sorted(LAUNCH.iterdir())
CONFIGS = {path.stem: path for path in FILES if path.suffix == ".yaml"}
KINDS = {
    "1x8-ddp": (DistributedType.MULTI_GPU, 1, 8),
    "1x8-fsdp": (DistributedType.FSDP, 1, 8),
    "2x8-fsdp": (DistributedType.FSDP, 2, 16),
}


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_the_file_and_knows_every_field(name):
    config = load_config_from_file(str(CONFIGS[name]))  # raises for fields it does not know
    assert isinstance(config, ClusterConfig)
    kind = (config.distributed_type, config.num_machines, config.num_processes)
    assert kind == KINDS[name]
    assert config.mixed_precision == "bf16"
    known = set(vars(launch_command_parser().parse_args(["program.py"])))
    assert set(config.fsdp_config) <= known


def test_a_field_that_accelerate_does_not_know_would_be_noticed(tmp_path):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(CONFIGS["1x8-ddp"].read_text() + "num_gpus: 8\n")
    with pytest.raises(ValueError, match="num_gpus"):
        load_config_from_file(str(wrong))


@pytest.mark.parametrize("name", ["1x8-fsdp", "2x8-fsdp"])
def test_the_file_shares_out_as_training_does_by_itself(name):
    config = yaml.safe_load(CONFIGS[name].read_text())["fsdp_config"]
    layers = config["fsdp_transformer_layer_cls_to_wrap"].split(",")
    stated = {key.removeprefix("fsdp_"): value for key, value in config.items()}
    stated["transformer_layer_cls_to_wrap"] = layers
    for key, value in fsdp_settings(read_recipe("4b-sft")).items():
        assert stated[key] == value, key


@pytest.mark.parametrize("name", ["4b-lora", "4b-sft", "27b-sft"])
def test_a_file_named_for_a_recipe_has_its_gpus(name):
    (path,) = [path for path in CONFIGS.values() if f" {name} " in path.read_text()]
    config, recipe = yaml.safe_load(path.read_text()), read_recipe(name)
    assert config["num_processes"] == recipe.gpus
    assert (config["distributed_type"] == "FSDP") == (recipe.sharding == "fsdp")


def test_torchrun_understands_its_line():
    (script,) = [path for path in FILES if path.suffix == ".sh"]
    text = script.read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith("exec ")]
    words = shlex.split(line.replace("${HEAD:?set it to the address of the first machine}", "head"))
    assert words[:2] == ["exec", "torchrun"]
    found = get_args_parser().parse_args(words[2:])
    assert (found.nnodes, found.nproc_per_node) == ("2", "8")
    assert (found.rdzv_backend, found.rdzv_endpoint) == ("c10d", "head:29500")
    assert (found.module, found.training_script) == (True, "gemma3vl_app.cli")
    assert found.training_script_args == ["finetune", "$@"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_says_that_it_was_not_measured(path):
    assert "Not measured." in path.read_text()


# --- what a launcher's environment may change, and what not ---


@pytest.fixture
def launched(monkeypatch):
    """Set the variables that `accelerate launch` sets for a file, all but the group's address."""

    def launched(name):
        parser = launch_command_parser()
        parsed = parser.parse_args(["--config_file", str(CONFIGS[name]), "program.py"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "device_count", lambda: 8)
            arguments, *_ = _validate_launch_command(parsed)
        before = dict(os.environ)
        found = prepare_multi_gpu_env(arguments)
        for key, value in found.items():
            if before.get(key) != value and not key.startswith(("MASTER_", "RANK", "WORLD_SIZE")):
                monkeypatch.setenv(key, value)

    return launched


def arguments(recipe, tmp_path, **settings):
    known = {"bf16": False, "evaluates": False, "seen": 8, **settings}
    return training_arguments(recipe, tmp_path, **known)


def test_the_recipe_decides_about_the_arithmetic_and_no_variable(launched, tmp_path):
    recipe = Recipe(global_batch=8)
    launched("1x8-ddp")
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert arguments(recipe, tmp_path, bf16=False).mixed_precision == "no"
    assert arguments(recipe, tmp_path, bf16=True).mixed_precision == "bf16"


@pytest.mark.parametrize("name", ["1x8-fsdp", "2x8-fsdp"])
def test_a_launch_file_for_sharding_changes_nothing_that_a_recipe_states(name, launched, tmp_path):
    recipe = replace(read_recipe("4b-sft"), gradient_checkpointing=False)

    def plugin():
        found = arguments(recipe, tmp_path, bf16=True, layers=["Gemma3DecoderLayer"])
        made = FullyShardedDataParallelPlugin(**found.fsdp_plugin_args)
        made.set_mixed_precision(found.mixed_precision)  # as accelerate does
        return {key: str(value) for key, value in vars(made).items()}

    by_itself = plugin()
    launched(name)
    assert os.environ["FSDP_ACTIVATION_CHECKPOINTING"] == "true"
    assert plugin() == by_itself


def test_gradients_are_added_up_in_fp32(tmp_path):
    found = arguments(read_recipe("4b-sft"), tmp_path, bf16=True)
    plugin = FullyShardedDataParallelPlugin(**found.fsdp_plugin_args)
    plugin.set_mixed_precision("bf16")
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)


def test_only_layers_that_a_model_has_are_named():
    class Gemma3DecoderLayer(torch.nn.Module):
        pass

    assert sharded_layers(torch.nn.Sequential(Gemma3DecoderLayer())) == ["Gemma3DecoderLayer"]


def test_a_recipe_for_many_processes_is_not_run_as_one():
    with pytest.raises(TrainingError, match=r"one process. Run `torchrun .*--nproc-per-node 8 "):
        check_launch(read_recipe("4b-sft"))


def test_a_launch_file_for_sharding_is_not_used_for_a_recipe_without(launched, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    check_launch(read_recipe("4b-lora"))
    check_launch(read_recipe("4b-sft"))
    launched("1x8-fsdp")
    check_launch(read_recipe("4b-sft"))
    with pytest.raises(TrainingError, match=r"Launch it with 1x8-ddp\.yaml"):
        check_launch(read_recipe("4b-lora"))
