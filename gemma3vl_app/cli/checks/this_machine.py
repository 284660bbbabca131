"""The doctor's looks at this machine: facts are gathered here, the other modules judge them.

Each look gathers its own facts, since that may fail, too. What may be missing or broken is
imported by the look that needs it.
"""

from __future__ import annotations

import os
import platform
import shutil
from functools import cached_property
from importlib import metadata, resources, util
from pathlib import Path

from gemma3vl_app import catalog, hardware
from gemma3vl_app.cli.checks import machine, models, storage
from gemma3vl_app.cli.checks.check import Check, Look
from gemma3vl_app.cli.checks.torch_facts import TorchFacts, ask_torch

DISTRIBUTION = "gemma3vl-app"
CONVERTED_BASE = "gemma-3-270m-*/manifest.json"  # as loading.base_270m names it
PACKAGES, HUB = "Python and packages", "Hugging Face hub"


def looks(*, online: bool) -> list[Look]:
    """Return all looks, in the order of the report."""
    here = _ThisMachine(online=online)
    return [
        Look(machine.SECTION, "system", here.look_at_system),
        Look(machine.SECTION, "memory", here.look_at_memory),
        Look(machine.SECTION, "GPU", here.look_at_gpus),
        Look(PACKAGES, "Python", here.look_at_python),
        Look(PACKAGES, "packages", here.look_at_packages),
        Look(PACKAGES, "torch starts", here.look_at_torch),
        Look(storage.SECTION, "our cache", here.look_at_own_cache),
        Look(storage.SECTION, "hub cache", here.look_at_hub_cache),
        Look(storage.SECTION, "disk", here.look_at_disks),
        Look(HUB, "settings", here.look_at_hub_settings),
        Look(HUB, "licence", here.look_at_licence),
        Look(models.SECTION, "demo", here.look_at_demo),
        Look(models.SECTION, "sizes", here.look_at_sizes),
    ]


class _ThisMachine:
    """Gathers facts once, when a look first needs them."""

    def __init__(self, *, online: bool) -> None:
        self._online = online

    @cached_property
    def machine(self) -> hardware.Machine:
        return hardware.detect_without_torch()

    @cached_property
    def torch(self) -> TorchFacts:
        return ask_torch()

    @cached_property
    def requires(self) -> list[str]:
        try:
            return metadata.requires(DISTRIBUTION) or []
        except metadata.PackageNotFoundError:
            return []

    # --- machine ---

    def look_at_system(self) -> list[Check]:
        name = f"{platform.system()} {platform.release()}".replace("Darwin", "macOS, Darwin")
        return [
            machine.system(self.machine, name=name, processor=platform.machine()),
            machine.arithmetic(self.machine),
        ]

    def look_at_memory(self) -> list[Check]:
        return [machine.memory(self.machine)]

    def look_at_gpus(self) -> list[Check]:
        from gemma3vl_app.cli.checks.packages import pinned_torch

        return machine.gpus(
            self.machine,
            self.torch,
            system=platform.system(),
            pinned=pinned_torch(self.requires),
            hidden=os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"),
            driver_tool=shutil.which("nvidia-smi") is not None,
        )

    # --- Python and packages ---

    def look_at_python(self) -> list[Check]:
        from gemma3vl_app.cli.checks import packages

        try:
            wanted = metadata.metadata(DISTRIBUTION)["Requires-Python"] or ""
        except (metadata.PackageNotFoundError, KeyError):
            wanted = ""
        return [packages.python(platform.python_version(), wanted)]

    def look_at_packages(self) -> list[Check]:
        from gemma3vl_app.cli.checks import packages

        if not self.requires:
            return [packages.not_installed()]
        extras = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
        return packages.packages(self.requires, extras, metadata.version)

    def look_at_torch(self) -> list[Check]:
        from gemma3vl_app.cli.checks import packages

        return [packages.torch_starts(self.torch, packages.pinned_torch(self.requires))]

    # --- caches and disk ---

    def look_at_own_cache(self) -> list[Check]:
        from gemma3vl_app.loading.cache import cache_root, cached_folders

        root = cache_root()
        sizes = [folder.bytes for folder in cached_folders()]
        leftovers = storage.find_leftovers(root)
        return storage.own_cache(root, sizes, leftovers, storage.why_not_writable(root))

    def look_at_hub_cache(self) -> list[Check]:
        from gemma3vl_app.loading.hub import downloaded_models

        root = _hub_cache()
        sizes = [model.bytes for model in downloaded_models()]
        incomplete = storage.find_incomplete(root)
        return storage.hub_cache(root, sizes, incomplete, storage.why_not_writable(root))

    def look_at_disks(self) -> list[Check]:
        from gemma3vl_app.loading.cache import cache_root

        return [
            storage.disk(folders, shutil.disk_usage(existing).free)
            for folders, existing in storage.by_disk([cache_root(), _hub_cache()])
        ]

    # --- hub ---

    def look_at_hub_settings(self) -> list[Check]:
        from huggingface_hub import constants

        from gemma3vl_app.cli.checks import hub

        return [
            *hub.endpoint(os.environ),
            *hub.offline(os.environ),
            hub.token(os.environ, Path(constants.HF_TOKEN_PATH)),
        ]

    def look_at_licence(self) -> list[Check]:
        from huggingface_hub import constants

        from gemma3vl_app.cli.checks import hub
        from gemma3vl_app.loading.hub import downloaded_models

        if self._online:
            return [hub.licence_online(is_offline=constants.is_offline_mode())]
        return hub.licence_unasked(
            has_token=hub.token(os.environ, Path(constants.HF_TOKEN_PATH)).state == "good",
            downloaded=any(each.name.startswith("google/gemma-3") for each in downloaded_models()),
        )

    # --- models ---

    def look_at_demo(self) -> list[Check]:
        from gemma3vl_app.loading.cache import cache_root

        own = resources.files("gemma3vl_app").joinpath("loading", "demo_weights")
        return [
            models.demo(
                tower=own.joinpath("tower_projector.safetensors").is_file(),
                base=util.find_spec(models.BASE_PACKAGE.replace("-", "_")) is not None,
                converted=any(cache_root().glob(CONVERTED_BASE)),
            )
        ]

    def look_at_sizes(self) -> list[Check]:
        from gemma3vl_app.planning import plan

        # One of each size: they differ in training only.
        names = {entry.size: entry.name for entry in reversed(catalog.MODELS.values())}
        ordered = dict.fromkeys(entry.size for entry in catalog.MODELS.values())
        return [models.sizes({s: plan(names[s], machine=self.machine) for s in ordered})]


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)
