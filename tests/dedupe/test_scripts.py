"""Texts that differ in one sign that matters are no duplicates, in any script, by any rule's default."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from dedupe.runs import in_one_run, record
from vecferry.dedupe import Dedupe
from vecferry.dedupe.minhash import tokens_of

PAIRS = {
    "Latin": [("résumé", "resume"), ("C++", "C"), ("C#", "C"), (".NET", "NET"), ("3.5", "35"), ("-5", "5"),
              ("Maße", "Masse"), ("x²", "x2"), ("ısı", "isi"), ("100 %", "100"), ("it's", "its"),
              ("a != b", "a = b")],
    "Vietnamese": [("ma", "má"), ("mà", "mã"), ("bạn", "bán")],
    "Greek": [("πότε", "ποτέ"), ("νόμος", "νομός")],
    "Cyrillic": [("все", "всё"), ("замок", "за́мок"), ("мой", "мои")],
    "Arabic": [("عَلَم", "عِلْم"), ("كتب", "كُتُب"), ("درس", "درّس")],
    "Hebrew": [("סֵפֶר", "סַפָּר"), ("שׁם", "שׂם")],
    "Devanagari": [("कल", "काल"), ("दिन", "दीन"), ("कर्म", "करम")],
    "Bengali": [("কল", "কাল"), ("দিন", "দীন")],
    "Tamil": [("கல்", "கால்"), ("பல", "பல்")],
    "Thai": [("มา", "ม้า"), ("ไกล", "ใกล"), ("ขาว", "ข่าว")],
    "Han": [("未来", "末来"), ("大人", "太人"), ("買う", "賣う")],
    "Kana": [("はし", "ばし"), ("ビザ", "ピザ"), ("おばさん", "おばあさん")],
    "Hangul": [("방", "밤"), ("달", "딸")],
    "Burmese": [("စာ", "စား")],
    "Khmer": [("កា", "កី")],
}  # fmt: skip
# Longer ones; the pair's word stands in the middle of them.
SENTENCE = {
    "Latin": "the committee wrote about {} in the second chapter of its long report",
    "Thai": "วันนี้เราเห็น{}อยู่ที่หน้าบ้านของเพื่อน",
    "Han": "昨天我们在图书馆里谈到了{}的问题",
    "Kana": "きのうみんなで{}のはなしをしました",
}
PAIR = "metadata:pair"
RULES = [
    Dedupe(by="minhash", within=PAIR),
    Dedupe(by="minhash", within=PAIR, keep="last"),
    Dedupe(by="text"),
]
CASES = [(script, a, b) for script, pairs in PAIRS.items() for a, b in pairs]


def sentence(script: str, word: str) -> str:
    return SENTENCE.get(script, SENTENCE["Latin"]).format(word)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_one_sign_makes_two_texts(rule: Dedupe, tmp_path: Path) -> None:
    assert len(PAIRS) >= 12
    texts = [(sentence(script, a), sentence(script, b)) for script, a, b in CASES]
    texts += [(a, b) for _, a, b in CASES]
    records = [
        record(f"{number}-{place}", f"{number}: {text}" if rule.by == "text" else text, pair=number)
        for number, (one, other) in enumerate(texts)
        for place, text in enumerate((one, other, one))
    ]
    kept, *_ = in_one_run(rule, records, tmp_path, size=100)
    stay = (1, 2) if rule.keep == "last" else (0, 1)
    due = {f"{number}-{place}" for number in range(len(texts)) for place in stay}
    assert {r.id for r in kept} == due, [r.text for r in kept if r.id not in due]


@pytest.mark.parametrize(
    ("a", "b"), [("C++", "C"), ("3.5", "35"), ("-5", "5"), ("version 2", "version 3"), ("résumé", "resume")]
)
def test_length_does_not_help(a: str, b: str, tmp_path: Path) -> None:
    """In a long text one word more or less is little, but a sign alone is never a copy's difference."""
    around = " ".join(f"word{i}x" for i in range(400))
    kept, *_ = in_one_run(
        Dedupe(by="minhash"), [record(0, f"{a} {around}"), record(1, f"{b} {around}")], tmp_path
    )
    assert len(kept) == 2


@pytest.mark.parametrize("threshold", [0.5, 0.85, 0.99, 1.0])
def test_copies_are_found_at_every_threshold(threshold: float, tmp_path: Path) -> None:
    around = " ".join(f"word{i}x" for i in range(400))
    records = [
        record(0, around),
        record(1, around.upper() + "."),
        record(2, around.replace("word7x", "another")),
    ]
    kept, *_ = in_one_run(Dedupe(by="minhash", threshold=threshold), records, tmp_path)
    # One word of 400 stands in three shingles of 398: 395 / 401 = 0.985.
    assert [r.id for r in kept] == ([0] if threshold < 0.98 else [0, 2])


def test_scores_are_true_similarities(tmp_path: Path) -> None:
    words = [f"w{i}q" for i in range(60)]
    changed = [*words[:30], "other", *words[31:]]
    kept, stage, connection = in_one_run(
        Dedupe(by="minhash", threshold=0.8),
        [record(0, " ".join(words)), record(1, " ".join(changed))],
        tmp_path,
    )
    (removal,) = stage._removals(connection)
    assert [r.id for r in kept] == [0] and removal.score == pytest.approx(55 / 61)


def test_copies_in_scripts_without_spaces_are_found(tmp_path: Path) -> None:
    text = (
        "東京は日本の首都であり、世界でも有数の大都市の一つとして広く知られている。人口は約千四百万人である。"
        * 2
    )
    copy = text + "以上。"
    kept, *_ = in_one_run(
        Dedupe(by="minhash"), [record(0, text), record(1, copy), record(2, text[::-1])], tmp_path
    )
    assert [r.id for r in kept] == [0, 2]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ('C++, (C#) and .NET: "F*"', ["c++", "c#", "and", ".net", "f*"]),
        ("e\u0301tude — 3.5 % of -7", ["étude", "3.5", "%", "of", "-7"]),
        ("ขาวม้า ok", ["ข", "า", "ว", "ม้", "า", "ok"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("", []),
        ("…, ()", []),
    ],
)
def test_tokens(text: str, tokens: list[str]) -> None:
    assert tokens_of(text) == tokens


def test_the_pairs_differ_to_begin_with() -> None:
    assert all(tokens_of(a) != tokens_of(b) for _, a, b in CASES)
    assert all(len(set(pair)) == 2 for pair in itertools.chain(*PAIRS.values()))
