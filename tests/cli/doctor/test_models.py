"""What the doctor says of the demo and of what fits."""

import pytest

from gemma3vl_app.cli.checks import models
from gemma3vl_app.planning import plan
from tests.planning.machines import WITH_BF16, processor


def test_the_demo_is_good_when_its_parts_are_here():
    assert models.demo(tower=True, base=True, converted=False).state == "good"
    assert models.demo(tower=True, base=False, converted=True).state == "good"
    missing = models.demo(tower=True, base=False, converted=False)
    assert missing.state == "broken" and missing.next_step.startswith("pip install gemma3-270m")
    assert models.demo(tower=False, base=True, converted=True).state == "broken"


@pytest.mark.parametrize(
    ("room", "state", "told"),
    [
        (processor(64, WITH_BF16), "good", "fit"),
        (processor(3), "warning", "4b, 12b, 27b do not"),
        (processor(0), "broken", "not even the demo"),
    ],
)
def test_the_sizes_that_fit_are_told(room, state, told):
    names = {"demo": "demo", "4b": "4b-it", "12b": "12b-it", "27b": "27b-it"}
    check = models.sizes({size: plan(name, machine=room) for size, name in names.items()})
    assert check.state == state and told in check.message
