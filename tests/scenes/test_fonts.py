import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from gemma3vl_app.errors import TrainingError
from gemma3vl_app.scenes import fonts
from gemma3vl_app.scenes.fonts import CHARACTERS, FAMILIES, Face


@pytest.fixture
def a_font(needs_fonts):
    return Path(str(fonts.font(Face("DejaVu Sans"), 20).path))


def test_no_file_and_no_package_of_a_held_out_family_is_trained_on():
    files = Counter(stem for family in FAMILIES.values() for stem in family.files)
    assert set(files.values()) == {1}
    packages = [{f.package for f in FAMILIES.values() if f.held_out == held} for held in (0, 1)]
    assert not packages[0] & packages[1]


def test_ci_installs_the_packages_of_all_families():
    listed = Path(".ci/fonts.txt").read_text(encoding="utf-8").split()
    assert listed == sorted({family.package for family in FAMILIES.values()})


def test_every_family_has_a_licence_and_enough_families_are_listed():
    assert all(family.licence and family.package for family in FAMILIES.values())
    held_out = sum(family.held_out for family in FAMILIES.values())
    assert held_out >= fonts.LEAST_HELD_OUT
    assert len(FAMILIES) - held_out > fonts.LEAST_FAMILIES


def test_too_few_families_are_refused_with_the_packages_that_bring_more():
    with pytest.raises(TrainingError) as refused:
        fonts.enough([Face("Lato"), Face("Lato", bold=True), Face("Cabin")], held_out=False)
    assert "20 font families, and 1 are installed" in str(refused.value)
    assert "apt-get install fonts-cantarell" in str(refused.value)
    assert "fonts-lato" not in str(refused.value)  # there already
    assert "fonts-cabin" not in str(refused.value)  # held out
    with pytest.raises(TrainingError, match=r"to test on.*fonts-jetbrains-mono"):
        fonts.enough([Face("Lato"), Face("Cabin")], held_out=True)


def test_only_fonts_of_the_table_are_found_and_broken_ones_are_not(tmp_path, a_font):
    shutil.copy(a_font, tmp_path / "DejaVuSans-Bold.ttf")
    shutil.copy(a_font, tmp_path / "SomeOther.ttf")
    (tmp_path / "Lato-Regular.ttf").write_text("not a font")
    found = fonts.find((tmp_path, tmp_path / "missing"))
    assert found == {Face("DejaVu Sans", bold=True): tmp_path / "DejaVuSans-Bold.ttf"}


def test_a_font_without_one_of_the_characters_is_not_complete(a_font, monkeypatch):
    assert fonts.is_complete(a_font)
    monkeypatch.setattr(fonts, "CHARACTERS", "ab中")
    assert not fonts.is_complete(a_font)


def test_a_font_with_capitals_for_small_letters_is_not_complete(a_font, monkeypatch):
    shape = fonts._shape
    monkeypatch.setattr(fonts, "_shape", lambda font, character: shape(font, character.upper()))
    assert not fonts.is_complete(a_font)


def test_faces_are_of_the_families_asked_for_in_a_fixed_order(needs_fonts):
    for held_out in (False, True):
        faces = fonts.faces(held_out=held_out)
        assert list(faces) == sorted(set(faces))
        assert {FAMILIES[face.family].held_out for face in faces} == {held_out}


def test_every_face_has_ink_for_every_character(needs_fonts):
    for face in (*fonts.faces(), *fonts.faces(held_out=True)):
        glyphs, width = fonts.lay_out(face, CHARACTERS)
        assert len(glyphs) == len(CHARACTERS) < 2 * width
        assert all(each.left < each.right and each.top < each.bottom for each in glyphs)


def test_characters_lie_where_the_font_itself_puts_them(needs_fonts):
    line, pixels = "AVATAR 10", 120
    for face in (Face("Liberation Serif"), Face("DejaVu Sans Mono")):
        glyphs, width = fonts.lay_out(face, line)
        unit = pixels * fonts.capital(face)
        picture = Image.new("L", (1600, 300))
        pen = ImageDraw.Draw(picture)
        pen.text((100, 200), line, fill=255, font=fonts.font(face, pixels), anchor="ls")
        columns = np.flatnonzero(np.asarray(picture).any(axis=0))
        assert columns[0] == pytest.approx(100 + glyphs[0].left * unit, abs=3)
        assert columns[-1] + 1 == pytest.approx(100 + glyphs[-1].right * unit, abs=5)
        assert fonts.font(face, pixels).getlength(line) == pytest.approx(width * unit, rel=0.02)
        assert [each.character for each in glyphs] == list("AVATAR10")


def test_a_capital_letter_is_one_unit_high(needs_fonts):
    for face in (Face("Lato"), Face("URW Bookman", bold=True)):
        [glyph], _ = fonts.lay_out(face, "H")
        assert glyph.bottom - glyph.top == pytest.approx(1)
