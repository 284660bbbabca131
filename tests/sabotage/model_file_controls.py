"""Controls of model files, which are data and no programs."""

from tests.sabotage.control import Control

GGUF, _HEADER = "loading/gguf_header.py", "loading/test_gguf_header.py::test_"
DCP, _MEGATRON = "conversion/dcp_reader.py", "conversion/megatron/test_dcp_reader.py::test_"

CONTROLS = (
    # --- model files ---
    Control(
        *("model files", "a pickle is told from weights and not run", "loading/shards.py"),
        *(
            "if length > MAX_HEADER_BYTES or length > rest or len(start) < LENGTH_BYTES:",
            "if False:",
        ),
        "loading/test_shards.py::test_a_saved_pickle_is_refused_and_not_run",
    ),
    Control(
        *("model files", "an index points at weights in its own folder", "loading/checkpoint.py"),
        *('plain = Path(file).name == file and file.endswith(".safetensors")', "plain = True"),
        "loading/test_loader.py::test_an_index_cannot_point_out_of_its_folder_or_to_another_format",
    ),
    Control(
        *("model files", "a GGUF's counts are bounded", GGUF),
        *("if tensors > MAX_TENSORS or values > MAX_VALUES:", "if False:"),
        _HEADER + "damage_is_named",
    ),
    Control(
        *("model files", "a GGUF's lengths end inside the file", GGUF),
        *("if count > self._limit - start:", "if False:"),
        _HEADER + "damage_is_named",
    ),
    Control(
        *("model files", "a GGUF's tensors lie inside the file", GGUF),
        *("or data_start + offset + length > self._size:", "or False:"),
        _HEADER + "damage_is_named",
    ),
    Control(
        *("model files", "a GGUF's tensors do not overlap", GGUF),
        *("if tensor.start < end:", "if False:"),
        _HEADER + "damage_is_named",
    ),
    Control(
        *("model files", "Megatron's directory names its own classes and no other", DCP),
        'raise pickle.UnpicklingError(f"{module}.{name}")',
        "return super().find_class(module, name)",
        _MEGATRON + "a_directory_that_would_run_code_is_refused",
    ),
    Control(
        *("model files", "pieces of Megatron's weights are numbers alone", DCP),
        *("weights_only=True", "weights_only=False"),
        _MEGATRON + "a_weight_that_would_run_code_is_refused",
    ),
    Control(
        *("model files", "pieces of Megatron's weights lie in their folder", DCP),
        *("_require(PurePosixPath(name).name == name)", "pass"),
        _MEGATRON + "a_piece_outside_of_the_folder_is_not_read",
    ),
    Control(
        *("model files", "only Gemma 3's own classes are built", "loading/loader.py"),
        *(
            "if not isinstance(architecture, str) or architecture not in ARCHITECTURES:",
            "if False:",
        ),
        "loading/test_loader.py::test_another_architecture_is_refused_by_name",
    ),
    Control(
        *("model files", "code in a model's folder is not run", "loading/loader.py"),
        "config_class.from_dict(config_json)",
        '__import__("transformers").AutoConfig.from_pretrained('
        "checkpoint.folder, trust_remote_code=True)",
        "loading/test_loader.py::test_code_in_the_folder_is_never_run",
    ),
    Control(
        *("model files", "downloads have the hash that the hub states", "loading/hub_download.py"),
        *("return digest.hexdigest() == file.hash", "return True"),
        "loading/hub/test_hub_download.py::test_other_bytes_than_announced_are_deleted_and_told",
    ),
)
