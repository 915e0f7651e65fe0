"""Damaged encoding is told from sound text, and repaired; control characters go."""

from __future__ import annotations

import pytest

from kif_lightning.benchmarks.doctor.texts import has_control, is_damaged, mended_row, mended_text
from kif_lightning.interfaces import Row

SOUND = (
    "“Déjà vu”, naïve, 20 €, 100 °C, Ægir… Œuvre",
    "Ça va? À bientôt; Évry",
    "Größe; Übermaß (»Ärger«)",
    "日本語のテキスト、東京。",
    "Привет, мир! В лесу",  # noqa: RUF001
    "Ελληνικά κείμενο",
    "한국어 문장",
    "emoji 😀👍🏽",
    "\u00a0no-break\u00a0",
)


@pytest.mark.parametrize("text", SOUND)
def test_sound_text_stays(text: str) -> None:
    assert not is_damaged(text)
    assert mended_text(text) == text


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "cp1250", "mac_roman", "cp437"])
@pytest.mark.parametrize("text", ["café crème", "schön größer", "5 € für Öl", "wait… no"])
def test_text_read_in_another_encoding_is_repaired(text: str, encoding: str) -> None:
    damaged = text.encode().decode(encoding)
    assert is_damaged(damaged)
    assert mended_text(damaged) == text


@pytest.mark.parametrize(
    ("damaged", "whole"),
    [
        ("Ã la carte", "à la carte"),
        ("so\x85 on", "so… on"),
        ("Â£5", "£5"),
        ("ÃƒÂ©tÃƒÂ©", "été"),
        ("a\x08b\x00c\x7f", "abc"),
        ("caf\x01Ã\x02©", "café"),
    ],
)
def test_damage_is_mended_at_once(damaged: str, whole: str) -> None:
    assert mended_text(damaged) == whole
    assert mended_text(whole) == whole


@pytest.mark.parametrize("code", range(256))
def test_control_characters_are_those_of_ascii_but_tab_and_line_ends(code: int) -> None:
    expected = (code < 32 or code == 127) and chr(code) not in "\t\n\r"
    assert has_control(f"a{chr(code)}b".encode()) == expected


def test_label_words_stay_as_they_are() -> None:
    row = Row(id="1", input="cafÃ©", output="Ã©\x08")
    assert mended_row(row, closed_answers=True) == Row(id="1", input="café", output="Ã©\x08")
    assert mended_row(row, closed_answers=False) == Row(id="1", input="café", output="é")
