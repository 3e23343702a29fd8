"""The few Chinese words that stand in for mathematics in an answer, as the English ones that are read."""

from __future__ import annotations

import re

from verifiers.grammar.clean import clean

_WHOLE = {
    "是": "yes", "对": "yes", "能": "yes", "否": "no", "不是": "no", "不能": "no",
    "正确": "true", "错误": "false", "不存在": "does not exist", "无解": "no solution",
    "空集": "empty set", "任意实数": "all real numbers",
    "全体实数": "all real numbers",
}  # fmt: skip
_UNITS = {
    "平方厘米": "cm^2", "平方米": "m^2", "平方千米": "km^2", "立方厘米": "cm^3", "立方米": "m^3",
    "毫米": "mm",
    "厘米": "cm", "分米": "dm", "千米": "km", "公里": "km", "米": "m", "千克": "kg", "公斤": "kg", "克": "g",
    "小时": "hours", "分钟": "minutes", "秒": "seconds", "天": "days", "升": "l", "毫升": "ml", "元": "yuan",
    "度": "degrees", "个": "pieces", "人": "people",
}  # fmt: skip
_SYLLABLE = "\u3400-\u9fff"
_WORDS = re.compile(rf"[{_SYLLABLE}]+")
_UNIT = re.compile(rf"(?<=[\d}})$])\s*({'|'.join(_UNITS)})(?![{_SYLLABLE}])")
_IN_TEXT = re.compile(r"\\text(?:bf|rm)?\{\s*(\S+?)\s*\}")
_OR = re.compile(rf"(?<![{_SYLLABLE}])\s*或者?\s*(?![{_SYLLABLE}])")
_AND = re.compile(rf"(?<![{_SYLLABLE}])\s*[和与且]\s*(?![{_SYLLABLE}])")


def in_english(text: str) -> str:
    """Yes, no and the like, units behind a number, and "or" and "and" between formulas; the rest stays.

    Raises `ParseError` as `clean` does.
    """
    found = _WORDS.search(text)
    if found is None:
        return text
    cleaned = clean(text)
    inside = _IN_TEXT.fullmatch(cleaned)
    if word := _WHOLE.get(inside[1] if inside else cleaned):
        return word
    if len(found[0]) > 4:
        return text
    text = _UNIT.sub(lambda unit: rf"\text{{ {_UNITS[unit[1]]}}}", cleaned)
    return _AND.sub(r" \\text{ and } ", _OR.sub(r" \\text{ or } ", text))
