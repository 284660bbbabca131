"""Write down what the reference implementations of metrics give for the cases beside this file.

Each `NAME.json` holds cases, one a line: what is right, what was said, and what a reference made of
it. This keeps the first two and works out the third anew; to add a case, write its line without
the result. In an environment of its own, since lmms-eval wants other packages than this project:

    python -m venv references
    references/bin/pip install lmms-eval==0.7.3
    git clone https://github.com/GT-Vision-Lab/VQA    # at a013f00
    references/bin/python tests/evaluation/references/record.py VQA

Nothing is downloaded by the functions that are called. `git diff` shows what has changed.
"""

import json
import random
import re
import sys
import types
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
LMMS_EVAL = "0.7.3"
GUESS = "a letter by chance"


def main(vqa_folder):
    assert version("lmms_eval") == LMMS_EVAL, f"these are the results of lmms-eval {LMMS_EVAL}"
    record("anls", anls())
    record("relaxed", relaxed())
    record("ocrbench", ocrbench())
    record("choices", choices())
    record("free", free())
    record("vqa", vqa(official_vqa(Path(vqa_folder))))


def record(name, work_out):
    path = HERE / f"{name}.json"
    cases = [case | work_out(case) for case in json.loads(path.read_text("utf-8"))]
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    path.write_text(f"[\n{lines}\n]\n", "utf-8")


def anls():
    from lmms_eval.api.metrics import anls

    return lambda case: {"score": anls(case["answers"], [case["said"]])["anls"]}


def relaxed():
    from lmms_eval.tasks.chartqa.utils import chartqa_process_results

    def work_out(case):
        doc = {"answer": case["wanted"], "type": "human_test"}
        return {"right": chartqa_process_results(doc, [case["said"]])["relaxed_overall"] == 1.0}

    return work_out


def ocrbench():
    from lmms_eval.tasks.ocrbench.utils import ocrbench_process_results

    def work_out(case):
        doc = {
            "answer": case["answers"],
            "dataset": "HME100k" if "Mathematical" in case["kind"] else "IIIT5K",
            "question_type": case["kind"],
        }
        return {
            "right": ocrbench_process_results(doc, [case["said"]])["ocrbench_accuracy"]["score"]
        }

    return work_out


def choices():
    """MMMU's letter; where its script finds none it draws one, which is told as a guess."""
    from lmms_eval.tasks.mmmu.utils import get_multi_choice_info, parse_multi_choice_response

    random.choice = lambda _: GUESS

    def work_out(case):
        texts, letters = get_multi_choice_info(case["options"])
        return {"letter": parse_multi_choice_response(case["said"], letters, texts)}

    return work_out


def free():
    from lmms_eval.tasks.mmmu.utils import eval_open, parse_open_response

    def work_out(case):
        return {"right": eval_open(case["answers"], parse_open_response(case["said"]))}

    return work_out


def vqa(official):
    """The official script's accuracy, and what lmms-eval gives for VQAv2 and for TextVQA."""
    from lmms_eval.tasks.textvqa.utils import textvqa_process_results
    from lmms_eval.tasks.vqav2.utils import vqav2_process_results

    def work_out(case):
        # Both change the answers that they are given.
        listed = [{"answer": a, "answer_id": n} for n, a in enumerate(case["answers"])]
        said, doc = [case["said"]], {"question_id": 1}
        vqav2 = vqav2_process_results(doc | {"answers": listed}, said)
        textvqa = textvqa_process_results(doc | {"answers": list(case["answers"])}, said)
        return {
            "official": official(case["answers"], case["said"]),
            "vqav2": round(vqav2["exact_match"], 6),
            "textvqa": round(textvqa["exact_match"], 6),
        }

    return work_out


def official_vqa(folder):
    """Return the accuracy of `vqaEval.py`, a program in Python 2: only its prints are changed."""
    path = folder / "PythonEvaluationTools" / "vqaEvaluation" / "vqaEval.py"
    program = re.sub(r"^(\s*)print (.*)$", r"\1pass", path.read_text("utf-8"), flags=re.M)
    module = types.ModuleType("vqaEval")
    exec(compile(program, str(path), "exec"), module.__dict__)

    def accuracy(answers, said):
        listed = [{"answer": a, "answer_id": n} for n, a in enumerate(answers)]
        asked = {"answers": listed, "question_type": "what", "answer_type": "other"}
        questions = types.SimpleNamespace(qa={1: asked}, getQuesIds=lambda: [1])
        answered = types.SimpleNamespace(qa={1: {"answer": said}})
        run = module.VQAEval(questions, answered, n=4)
        run.updateProgress = lambda _: None
        run.evaluate()
        return run.accuracy["overall"] / 100

    return accuracy


if __name__ == "__main__":
    main(sys.argv[1])
