"""A few rows of each published set, in the columns that it has on the hub, with pictures.

The columns were typed in from the sets' pages on the hub; nothing here was downloaded.
"""

from PIL import Image


def picture(colour):
    return Image.new("RGB", (16, 12), colour)


DOCVQA = {
    "questionId": ["337", "338"],
    "question": ["what is the date?", "what is the total?"],
    "question_types": [["handwritten", "form"], ["table/list"]],
    "image": ["red", "blue"],
    "docId": [279, 280],
    "ucsf_document_id": ["xnbl0037", "xnbl0038"],
    "ucsf_document_page_no": ["1", "1"],
    "answers": [["1/8/93"], ["12", "12.00"]],
    "data_split": ["val", "val"],
}
TEXTVQA = {
    "image_id": ["003a8ae2ef43b901"],
    "question_id": [34602],
    "question": ["what is the brand of this camera?"],
    "image": ["red"],
    "answers": [["nous les gosses", "dakota", *["dakota digital"] * 8]],
    "ocr_tokens": [["DAKOTA", "DIGITAL"]],
    "set_name": ["val"],
}
VQAV2 = {
    "question_type": ["what is this"],
    "multiple_choice_answer": ["net"],
    "answers": [
        [{"answer": a, "answer_confidence": "yes", "answer_id": n} for n, a in enumerate(nets)]
        for nets in [["net"] * 8 + ["netting", "mesh"]]
    ],
    "image_id": [262148],
    "answer_type": ["other"],
    "question_id": [262148000],
    "question": ["Where is he looking?"],
    "image": ["red"],
}
CHARTQA = {
    "type": ["human_test", "augmented_test"],
    "question": ["How many bars?", "What is the value in 2020?"],
    "answer": ["3", "14.2"],
    "image": ["red", "blue"],
}
CHARTQA_M4 = {
    "image": ["red", "blue"],
    "query": ["How many bars?", "What is the value in 2020?"],
    "label": [["3"], ["14.2"]],
    "human_or_machine": [0, 1],
}
OCRBENCH = {
    "dataset": ["IIIT5K", "HME100k", "ct80", "DocVQA"],
    "question": [
        "what is written in the image?",
        "Please write out the expression.",
        "what is written in the picture?",
        "What is the date?",
    ],
    "question_type": [
        "Regular Text Recognition",
        "Handwritten Mathematical Expression Recognition",
        "Irregular Text Recognition",
        "Doc-oriented VQA",
    ],
    "answer": [["CENTRE"], ["x ^ { 2 }"], ["THE COFFEE SHOP"], ["1/8/93", "January 8"]],
    "image": ["red", "blue", "red", "blue"],
}
COCO = {
    "question_id": ["000000179765.jpg", "000000190236.jpg"],
    "image": ["red", "blue"],
    "question": ["Please carefully observe the image.", "Please carefully observe the image."],
    "answer": [["A black bike.", "A motorbike stands."], ["An office.", "A desk with a lamp."]],
    "id": [0, 1],
    "file_name": ["000000179765.jpg", "000000190236.jpg"],
}
MMMU = {
    "id": ["validation_Art_Theory_1", "validation_Math_2"],
    "question": ["Who made <image 1>?", "How many dots does <image 2> have more than <image 1>?"],
    "options": ["['Ann', 'Bob', 'Cy', 'Di']", "[]"],
    "explanation": ["", ""],
    "image_1": ["red", "red"],
    "image_2": [None, "blue"],
    **{f"image_{n}": [None, None] for n in range(3, 8)},
    "img_type": ["['Paintings']", "['Plots']"],
    "answer": ["B", "7"],
    "topic_difficulty": ["Easy", "Hard"],
    "question_type": ["multiple-choice", "open"],
    "subfield": ["Theory", "Geometry"],
}
OF = {
    "docvqa": DOCVQA,
    "textvqa": TEXTVQA,
    "vqav2": VQAV2,
    "chartqa": CHARTQA,
    "ocrbench": OCRBENCH,
    "coco": COCO,
    "mmmu": MMMU,
}


def dataset(columns):
    """Return rows as the package `datasets` has them: pictures as its Image, ChartQA's classes."""
    import datasets

    shown = {
        name: [value and picture(value) for value in values]
        if name.startswith("image") and name != "image_id"
        else values
        for name, values in columns.items()
    }
    made = datasets.Dataset.from_dict(shown)
    for name in columns:
        if name.startswith("image") and name != "image_id":
            made = made.cast_column(name, datasets.Image())
    if "human_or_machine" in columns:
        classes = datasets.ClassLabel(names=["human", "machine"])
        made = made.cast_column("human_or_machine", classes)
    return made
