"""The fonts that pictures are printed in: which are trained on, which held out, where they are.

Only families of this table are used, whatever else a machine has, and only their files that have
an outline of their own for every one of `CHARACTERS`. Pictures are the same on two machines that
have the same of these files. Fonts without small letters and with a 1 that looks like an I are left
out on purpose. No font file is shipped: pictures are made with those of Debian's packages.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path

from PIL import ImageFont

from gemma3vl_app.errors import TrainingError

CHARACTERS = string.ascii_letters + string.digits + ".,-:$%/!?"
FOLDERS = (
    *(Path("/usr/share/fonts"), Path("/usr/local/share/fonts")),
    *(Path("~/.local/share/fonts"), Path("~/.fonts")),
)
LEAST_FAMILIES, LEAST_HELD_OUT = 20, 4
_REFERENCE = 200  # pixels an em, at which fonts are measured
_CACHED_FONTS, _CACHED_SIZES = 512, 1 << 16
_MISSING = "\U0010ffff"  # no font has it: shown as what stands for missing characters
_SUFFIXES = (".ttf", ".otf")


@dataclass(frozen=True)
class Family:
    """One family: its Debian package and licence; files without suffix, plain and bold first."""

    package: str
    licence: str
    files: tuple[str, ...]  # plain, bold, italic, both: as many as there are
    held_out: bool = False


@dataclass(frozen=True, order=True)
class Face:
    """One of the up to four faces of a family."""

    family: str
    bold: bool = False
    italic: bool = False


def _files(stem: str, *ends: str) -> tuple[str, ...]:
    return tuple(f"{stem}{end}" for end in ends)


_FOUR = ("-Regular", "-Bold", "-Italic", "-BoldItalic")
_OFL, _APACHE, _VERA = "OFL-1.1", "Apache-2.0", "Bitstream-Vera"
_LIBERATION = "GPL-2 with font exception"
_URW = "AGPL-3 with font exception"

FAMILIES: Mapping[str, Family] = {
    "DejaVu Sans": Family("fonts-dejavu-core", _VERA, _files("DejaVuSans", "", "-Bold")),
    "DejaVu Sans Mono": Family("fonts-dejavu-core", _VERA, _files("DejaVuSansMono", "", "-Bold")),
    "DejaVu Serif": Family("fonts-dejavu-core", _VERA, _files("DejaVuSerif", "", "-Bold")),
    "Liberation Sans": Family("fonts-liberation", _LIBERATION, _files("LiberationSans", *_FOUR)),
    "Liberation Serif": Family("fonts-liberation", _LIBERATION, _files("LiberationSerif", *_FOUR)),
    "Liberation Mono": Family("fonts-liberation", _LIBERATION, _files("LiberationMono", *_FOUR)),
    "Liberation Sans Narrow": Family(
        "fonts-liberation", _LIBERATION, _files("LiberationSansNarrow", *_FOUR)
    ),
    "Nimbus Sans": Family("fonts-urw-base35", _URW, _files("NimbusSans", *_FOUR)),
    "Nimbus Roman": Family("fonts-urw-base35", _URW, _files("NimbusRoman", *_FOUR)),
    "Nimbus Mono PS": Family("fonts-urw-base35", _URW, _files("NimbusMonoPS", *_FOUR)),
    "URW Gothic": Family(
        *("fonts-urw-base35", _URW),
        _files("URWGothic", "-Book", "-Demi", "-BookOblique", "-DemiOblique"),
    ),
    "URW Bookman": Family(
        *("fonts-urw-base35", _URW),
        _files("URWBookman", "-Light", "-Demi", "-LightItalic", "-DemiItalic"),
    ),
    "C059": Family(
        "fonts-urw-base35", _URW, _files("C059", "-Roman", "-Bold", "-Italic", "-BdIta")
    ),
    "P052": Family(
        "fonts-urw-base35", _URW, _files("P052", "-Roman", "-Bold", "-Italic", "-BoldItalic")
    ),
    "Z003": Family("fonts-urw-base35", _URW, ("Z003-MediumItalic",)),
    "Roboto": Family("fonts-roboto-unhinted", _APACHE, _files("Roboto", *_FOUR)),
    "Roboto Condensed": Family("fonts-roboto-unhinted", _APACHE, _files("RobotoCondensed", *_FOUR)),
    "Lato": Family("fonts-lato", _OFL, _files("Lato", *_FOUR)),
    "Cantarell": Family("fonts-cantarell", _OFL, _files("Cantarell", "-Regular", "-Bold")),
    "Comfortaa": Family("fonts-comfortaa", _OFL, _files("Comfortaa", "-Regular", "-Bold")),
    "Caladea": Family("fonts-crosextra-caladea", _APACHE, _files("Caladea", *_FOUR)),
    "Fira Code": Family("fonts-firacode", _OFL, _files("FiraCode", "-Regular", "-Bold")),
    "Hack": Family("fonts-hack", _VERA, _files("Hack", *_FOUR)),
    "Inconsolata": Family("fonts-inconsolata", _OFL, ("Inconsolata",)),
    "Linux Libertine": Family(
        "fonts-linuxlibertine", _OFL, _files("LinLibertine_R", "", "B", "I", "BI")
    ),
    "Linux Biolinum": Family("fonts-linuxlibertine", _OFL, _files("LinBiolinum_R", "", "B", "I")),
    "Play": Family("fonts-play", _OFL, _files("Play", "-Regular", "-Bold")),
    "Quicksand": Family("fonts-quicksand", _OFL, _files("Quicksand", "-Regular", "-Bold")),
    "Andika": Family("fonts-sil-andika", _OFL, _files("Andika", *_FOUR)),
    "Lobster Two": Family("fonts-lobstertwo", _OFL, _files("LobsterTwo", *_FOUR)),
    "Dosis": Family("fonts-dosis", _OFL, _files("Dosis", "-Medium", "-Bold")),
    "Karla": Family("fonts-karla", _OFL, _files("Karla", *_FOUR)),
    "Inter": Family("fonts-inter", _OFL, _files("Inter", *_FOUR)),
    "Yanone Kaffeesatz": Family(
        "fonts-yanone-kaffeesatz", _OFL, _files("YanoneKaffeesatz", "-Regular", "-Bold")
    ),
    "GFS Didot": Family(
        "fonts-gfs-didot", _OFL, _files("GFSDidot", "", "Bold", "Italic", "BoldItalic")
    ),
    # Never trained on: two sans, three serif, one of equal widths, none a relative of those above.
    "Open Sans": Family("fonts-open-sans", _APACHE, _files("OpenSans", *_FOUR), held_out=True),
    "Cabin": Family("fonts-cabin", _OFL, _files("Cabin", *_FOUR), held_out=True),
    "PT Sans": Family(
        *("fonts-paratype", "ParaType-Free-Font"),
        ("PTS55F", "PTS75F", "PTS56F", "PTS76F"),
        held_out=True,
    ),
    "PT Serif": Family(
        *("fonts-paratype", "ParaType-Free-Font"),
        ("PTF55F", "PTF75F", "PTF56F", "PTF76F"),
        held_out=True,
    ),
    "Gentium Basic": Family(
        "fonts-sil-gentium-basic", _OFL, _files("GenBas", "R", "B", "I", "BI"), held_out=True
    ),
    "JetBrains Mono": Family(
        "fonts-jetbrains-mono", _APACHE, _files("JetBrainsMono", *_FOUR), held_out=True
    ),
}


# --- which there are ------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def faces(*, held_out: bool = False) -> tuple[Face, ...]:
    """Return the faces on this machine, those trained on or those held out, in a fixed order.

    Raises:
        TrainingError: too few families are installed; names the Debian packages that bring more.
    """
    return enough(_on_this_machine(), held_out=held_out)


def enough(found: Iterable[Face], *, held_out: bool) -> tuple[Face, ...]:
    """Return those of the faces that are trained on, or that are held out, in a fixed order.

    Raises:
        TrainingError: they are of too few families; names the Debian packages that bring more.
    """
    wanted = {name: each for name, each in FAMILIES.items() if each.held_out == held_out}
    chosen = tuple(sorted(face for face in found if face.family in wanted))
    families = {face.family for face in chosen}
    least = LEAST_HELD_OUT if held_out else LEAST_FAMILIES
    if len(families) >= least:
        return chosen
    lacking = {each.package for name, each in wanted.items() if name not in families}
    raise TrainingError(
        f"Pictures of text need {least} font families{' to test on' if held_out else ''}, and "
        f"{len(families)} are installed. Install more and try again: "
        f"apt-get install {' '.join(sorted(lacking))}"
    )


def find(folders: Sequence[Path]) -> dict[Face, Path]:
    """Return the file of each face of the table that lies in one of the folders and is complete."""
    lying: dict[str, Path] = {}
    for folder, suffix in product(folders, _SUFFIXES):
        for path in sorted(folder.expanduser().rglob(f"*{suffix}")):
            lying.setdefault(path.stem, path)
    found: dict[Face, Path] = {}
    for name, family in FAMILIES.items():
        for number, stem in enumerate(family.files):
            if stem in lying and is_complete(lying[stem]):
                found[Face(name, bool(number & 1), bool(number & 2))] = lying[stem]
    return found


def is_complete(path: Path) -> bool:
    """Tell whether a file has an outline for each character, and small letters of their own."""
    try:
        font = _opened(path, 40)
    except OSError:  # not a font, or a broken one
        return False
    shapes = {character: _shape(font, character) for character in CHARACTERS}
    missing = _shape(font, _MISSING)
    drawn = all(any(pixels) and pixels != missing[1] for _, pixels in shapes.values())
    return drawn and all(shapes[small] != shapes[small.upper()] for small in "abdeghnqrt")


@lru_cache(maxsize=1)
def _on_this_machine() -> dict[Face, Path]:
    return find(FOLDERS)


def _shape(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


# --- what they measure ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Glyph:
    """A character of a line: where it starts, and the box around its ink.

    In heights of a capital letter from where the line's baseline begins; down counts.
    """

    character: str
    start: float
    left: float
    top: float
    right: float
    bottom: float


def lay_out(face: Face, line: str) -> tuple[tuple[Glyph, ...], float]:
    """Return a line's characters but for its spaces, and how wide the line is.

    The same for letters of any size: nothing is moved to whole pixels.
    """
    glyphs, start = [], 0.0
    for number, character in enumerate(line):
        if number:
            before = line[number - 1]
            start += _advance(face, before + character) - _advance(face, character)
        if character != " ":
            left, top, right, bottom = _ink(face, character)
            glyphs.append(Glyph(character, start, start + left, top, start + right, bottom))
    return tuple(glyphs), start + _advance(face, line[-1:])


@lru_cache(maxsize=_CACHED_FONTS)
def font(face: Face, pixels: int) -> ImageFont.FreeTypeFont:
    """Return a face of so many pixels an em; letters are never joined to one glyph."""
    return _opened(_on_this_machine()[face], pixels)


@lru_cache(maxsize=_CACHED_SIZES)
def capital(face: Face) -> float:
    """Return how high a capital letter is, as a fraction of the em."""
    _, top, _, bottom = font(face, _REFERENCE).getbbox("H", anchor="ls")
    return (bottom - top) / _REFERENCE


@lru_cache(maxsize=_CACHED_SIZES)
def _advance(face: Face, text: str) -> float:
    """Return how far one character, or two with their kerning, move the pen."""
    return font(face, _REFERENCE).getlength(text) / (_REFERENCE * capital(face))


@lru_cache(maxsize=_CACHED_SIZES)
def _ink(face: Face, character: str) -> tuple[float, float, float, float]:
    mask, (across, down) = font(face, _REFERENCE).getmask2(character, mode="L", anchor="ls")
    left, top, right, bottom = mask.getbbox() or (0, 0, 0, 0)  # getbbox of a font: room, not ink
    unit = _REFERENCE * capital(face)
    return (
        *((left + across) / unit, (top + down) / unit),
        *((right + across) / unit, (bottom + down) / unit),
    )


def _opened(path: Path, pixels: int) -> ImageFont.FreeTypeFont:
    # ImageFont.truetype would look elsewhere for a file of this name where this one is broken.
    return ImageFont.FreeTypeFont(str(path), pixels, layout_engine=ImageFont.Layout.BASIC)
