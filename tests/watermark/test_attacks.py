"""Every attack does what its name says, no more, the same for the same seed, on any Unicode."""

from __future__ import annotations

import re
import sysconfig
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiritsafe.errors import BadInput
from spiritsafe.watermark.attacks import ATTACKS, Text, Tools, parse_attack, run_attacks, stdlib_prose
from spiritsafe.watermark.attacks._splice import sentences
from spiritsafe.watermark.attacks._synonyms import synonyms_of
from spiritsafe.watermark.attacks._words import words
from train_kit import tiny_tokenizer

LICENCE = (Path(sysconfig.get_path("stdlib")) / "LICENSE.txt").read_text(encoding="utf-8")[:6000]
PROSE = (
    "The quick cat sat on a big mat. It was happy, and it said so! “Why not?” asked the man. Nobody knew the answer."
)
HOST = "Fjords glisten. Vexed nymphs waltz quickly under judging sphinxes. " * 30
WILD = "Zoë naïve 🙂👩‍👩‍👧 e\u0301tude — 東京は大きい。 שלום عَرَبِيّ हिन्दी\r\n\tend"
TOOLS = Tools(
    tokenizer=tiny_tokenizer(),
    host=HOST,
    rewrite=lambda passages: [passage.upper() for passage in passages],
    open_tokenizer=lambda _: tiny_tokenizer(),
)
EDITS = ["delete:30", "substitute:30", "synonym:30", "truncate:30", "homoglyph:30", "whitespace:30", "normalise"]
ALL = [*EDITS, "copy-paste:25x3", "retokenise", "retokenise:other", "paraphrase", "mix", "spoof:2"]


def texts(*contents: str) -> list[Text]:
    return [Text(f"t{i}", content) for i, content in enumerate(contents)]


def attacked(spec: str, *contents: str, seed: int = 0) -> list[Text]:
    return parse_attack(spec, TOOLS).run(texts(*contents), seed)


def word_list(text: str) -> list[str]:
    return [text[start:end] for start, end in words(text)]


def test_the_list_of_attacks_is_what_can_be_parsed() -> None:
    assert {parse_attack(name, TOOLS).label for name in ATTACKS} == set(ATTACKS)


@pytest.mark.parametrize("spec", ALL)
def test_same_seed_same_texts_and_whatever_else_is_attacked(spec: str) -> None:
    first = attacked(spec, LICENCE, PROSE, WILD)
    assert first == attacked(spec, LICENCE, PROSE, WILD)
    if spec not in ("normalise", "retokenise", "retokenise:other", "paraphrase", "mix"):
        assert first != attacked(spec, LICENCE, PROSE, WILD, seed=1)
    if spec.split(":")[0] not in ("mix", "spoof", "substitute"):  # these three read the other texts
        assert attacked(spec, LICENCE)[0] == first[0]


@pytest.mark.parametrize("spec", [spec for spec in ALL if not spec.startswith("spoof")])
@pytest.mark.parametrize("text", ["", " ", "\n", "x", "🙂", "..."])
def test_texts_without_much_in_them(spec: str, text: str) -> None:
    (out,) = attacked(spec, text)
    assert isinstance(out.text, str)


@given(text=st.text(max_size=120), spec=st.sampled_from(EDITS))
@settings(max_examples=150, deadline=None)
def test_any_text_stays_encodable_and_unmarked_parts_stay(text: str, spec: str) -> None:
    (out,) = attacked(spec, text)
    out.text.encode("utf-8", "surrogatepass")
    if spec.startswith("delete"):  # what is left is a subsequence
        rest = iter(text)
        assert all(character in rest for character in out.text)
    if spec.startswith(("substitute", "synonym")):
        assert len(out.text.split()) == len(text.split())


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("name", ["delete", "truncate"])
def test_as_many_words_go_as_the_strength_says(name: str, share: float) -> None:
    before = word_list(LICENCE)
    (out,) = attacked(f"{name}:{share * 100:g}", LICENCE)
    after = word_list(out.text)
    assert len(after) == len(before) - round(share * len(before))
    assert not Counter(after) - Counter(before)
    if name == "truncate":
        assert out.text in LICENCE


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_as_many_words_change_as_the_strength_says(share: float) -> None:
    before = word_list(LICENCE)
    (out,) = attacked(f"substitute:{share}", LICENCE)
    after = word_list(out.text)
    changed = sum(a != b for a, b in zip(before, after, strict=True))
    assert changed == round(share * len(before))
    assert out.facts["words_changed"] == pytest.approx(changed / len(before))
    assert {w.casefold() for w in after} <= {w.casefold() for w in before}
    gaps = re.compile(r"\s+")
    assert gaps.findall(out.text) == gaps.findall(LICENCE)


def test_synonyms_come_from_the_table_keep_their_case_and_report_what_it_knows() -> None:
    (out,) = attacked("synonym:50", PROSE)
    before, after = word_list(PROSE), word_list(out.text)
    for old, new in zip(before, after, strict=True):
        assert old == new or (new.lower() in synonyms_of(old) and old[0].isupper() == new[0].isupper())
    known = sum(bool(synonyms_of(word)) for word in before)
    assert out.facts["words_known"] == pytest.approx(known / len(before))
    assert 0 < out.facts["words_changed"] <= out.facts["words_known"]
    (all_known,) = attacked("synonym:100", PROSE)
    assert all_known.facts["words_changed"] == pytest.approx(known / len(before))
    assert word_list(parse_attack("synonym:100").run(texts("BIG Big big"), 0)[0].text)[0].isupper()


def test_a_word_in_two_groups_of_the_table_would_lose_one() -> None:
    from spiritsafe.watermark.attacks import _synonyms

    listed = _synonyms._GROUPS.split()
    assert not [word for word, count in Counter(listed).items() if count > 1]
    assert all(len(line.split()) >= 2 for line in _synonyms._GROUPS.splitlines() if line)


@pytest.mark.parametrize(("spec", "share", "spans"), [("copy-paste:25", 0.25, 1), ("copy-paste:0.1x3", 0.1, 3)])
def test_copy_paste_keeps_the_length_and_the_share_in_order(spec: str, share: float, spans: int) -> None:
    marked = " ".join(f"m{i}" for i in range(400))
    (out,) = attacked(spec, marked)
    after = word_list(out.text)
    assert len(after) == 400
    kept = [int(word[1:]) for word in after if re.fullmatch(r"m\d+", word)]
    assert len(kept) == round(share * 400)
    assert kept == sorted(kept)
    runs = re.sub(r"(?:\bm\d+\s*)+", "# ", out.text).count("#")
    assert 1 <= runs <= spans


def test_copy_paste_spans_are_apart_for_some_seed() -> None:
    marked = " ".join(f"m{i}" for i in range(400))
    counts = {
        re.sub(r"(?:\bm\d+\s*)+", "# ", attacked("copy-paste:30x3", marked, seed=seed)[0].text).count("#")
        for seed in range(5)
    }
    assert 3 in counts


def test_copy_paste_reads_the_standard_library_without_a_host() -> None:
    (out,) = parse_attack("copy-paste:10").run(texts(LICENCE), 0)
    docs = set(word_list(stdlib_prose()))
    assert sum(word in docs for word in word_list(out.text)) > 0.8 * len(words(out.text))


def test_mixing_loses_nothing_and_takes_turns() -> None:
    a, b, c = "A one. A two. A three.", "B one. B two.", "C alone."
    out = attacked("mix:2", a, b, c)
    assert [t.id for t in out] == ["t0+t1", "t2"]
    assert out[0].text == "A one. B one. A two. B two. A three."
    assert out[1].text == c


@given(st.text(alphabet=st.sampled_from('ab.!?"” \n。'), max_size=60))
def test_sentences_joined_are_the_text(text: str) -> None:
    assert "".join(sentences(text)) == text


def test_look_alikes_look_alike_and_are_undone() -> None:
    (out,) = attacked("homoglyph:100", PROSE)
    assert out.text != PROSE
    assert len(out.text) == len(PROSE)
    assert attacked("normalise", out.text)[0].text == PROSE
    (part,) = attacked("homoglyph:20", PROSE)
    differing = sum(a != b for a, b in zip(PROSE, part.text, strict=True))
    assert part.facts["letters_changed"] == pytest.approx(differing / len(PROSE))


def test_odd_spaces_keep_the_words_and_are_undone() -> None:
    (out,) = attacked("whitespace:100", PROSE)
    plain = re.sub("[\u200b\u200c\u200d\u2060]", "", out.text)
    assert plain.split() == PROSE.split()
    assert out.facts["gaps_changed"] == 1.0
    assert attacked("normalise", out.text)[0].text == PROSE


def test_normalising_leaves_the_layout_of_code() -> None:
    code = "def f(x):\n    if x:\n\treturn 1\n\n    return 0\n"
    assert attacked("normalise", code)[0].text == code


def test_normalising_leaves_greek_and_russian_alone() -> None:
    text = "Все люди рождаются свободными. а у о Όλοι οι άνθρωποι"
    assert attacked("normalise", text)[0].text == unicodedata.normalize("NFC", text)


def test_retokenising_spells_the_same_text_and_says_how_many_tokens_moved() -> None:
    tokenizer = TOOLS.tokenizer
    spelled = [tokenizer.encode(character, add_special_tokens=False)[0] for character in "the cat"]
    (out,) = parse_attack("retokenise", TOOLS).run([Text("a", "the cat", tuple(spelled))], 0)
    assert (out.text, out.ids) == ("the cat", None)
    assert len(tokenizer.encode("the cat", add_special_tokens=False)) < len(spelled)
    assert out.facts["tokens_moved"] > 0.4
    whole = tuple(tokenizer.encode(PROSE, add_special_tokens=False))
    assert parse_attack("retokenise", TOOLS).run([Text("a", PROSE, whole)], 0)[0].facts["tokens_moved"] == 0.0


def test_paraphrase_asks_a_few_sentences_a_time_and_keeps_what_comes_back_empty() -> None:
    asked: list[str] = []

    def rewrite(passages: Sequence[str]) -> list[str]:
        asked.extend(passages)
        return ["", *(f"<{passage.strip()}>" for passage in passages[1:])]

    (out,) = parse_attack("paraphrase:2", Tools(rewrite=rewrite)).run(texts("One. Two. Three. Four.\n\nFive."), 0)
    assert asked == ["One. Two. ", "Three. Four.\n\n", "Five."]
    assert out.text == "One. Two. <Three. Four.>\n\n<Five.>"
    assert out.facts["passages_rewritten"] == pytest.approx(2 / 3)


def test_attacks_follow_one_another_and_drop_the_ids_they_invalidate() -> None:
    start = [Text("a", PROSE, (1, 2, 3))]
    assert run_attacks(start, [], 0) == start
    (out,) = run_attacks(start, [parse_attack(spec, TOOLS) for spec in ("homoglyph:50", "normalise")], 0)
    assert (out.text, out.ids) == (PROSE, None)
    assert "letters_changed" in out.facts


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("delte:10", "did you mean delete"),
        ("nonsense", "there are delete"),
        ("delete:much", "the strength is a share"),
        ("delete:300", "the strength is a share"),
        ("delete:-1", "the strength is a share"),
        ("delete:nan", "the strength is a share"),
        ("mix:1", "a whole number from 2"),
        ("mix:two", "a whole number from 2"),
        ("copy-paste:x3", "the strength is a share"),
        ("copy-paste:10x0", "a whole number from 1"),
        ("normalise:3", "takes no strength"),
        ("retokenise", "--tokenizer"),
        ("spoof", "--tokenizer"),
        ("paraphrase", "--rewriter"),
    ],
)
def test_a_spec_that_cannot_be_is_bad_input(spec: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        parse_attack(spec)


def test_an_empty_host_is_bad_input() -> None:
    with pytest.raises(BadInput, match="no words"):
        parse_attack("copy-paste", Tools(host=" ..."))
