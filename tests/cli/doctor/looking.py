"""What tests of the doctor share: machines that are not here, and how to read its checks."""

from importlib.metadata import PackageNotFoundError

from gemma3vl_app.cli.checks.check import Check
from gemma3vl_app.cli.checks.torch_facts import TorchFacts

GIB = 1 << 30
CUDA = TorchFacts(cuda_build="13.0", cuda_usable=True, gpus=1)
CPU_ONLY = TorchFacts()
BROKEN_TORCH = TorchFacts(error="ImportError: libcudart.so.13")
REQUIRES = [
    "torch==2.13.0",
    "transformers<6,>=5.23",
    "pillow<13,>=12.3",
    'datasets<6,>=4; extra == "train"',
    'trl<2,>=0.24; extra == "train"',
    'pywin32>=300; sys_platform == "no-such-system"',
]
HERE = {"torch": "2.13.0+cpu", "transformers": "5.23.0", "pillow": "12.3"}
TOKEN = "hf_secretsecretsecret"


def version_of(installed):
    def version(name):
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    return version


def seen(checks) -> dict[str, str]:
    return {check.name: check.state for check in checks}


def named(checks, name) -> Check:
    (check,) = (each for each in checks if each.name == name)
    return check
