"""Each step by itself; near_dedup against brute force, refusals against look-alikes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate_kit import exchange, run_with
from spiritsafe.curate import STEPS, Context, Row, Step, curate
from spiritsafe.curate._config import CurateConfig
from spiritsafe.curate.steps._near_dedup import NearDedup, _bands
from spiritsafe.errors import BadInput
from spiritsafe.records import Message
from spiritsafe.tasks import jaccard, shingles, words

NOWHERE = Context(lambda: iter(()), lambda _: None)


def row(completion: str, prompt: str = "q", *, id: str = "x", finish: str = "stop", tokens: int = 9) -> Row:
    return Row(id, (Message("user", prompt),), completion, finish, tokens, "train")


def kept(name: str, rows: list[Row], **params: object) -> list[Row]:
    check = STEPS[name](**params).start(NOWHERE)
    return [r for r in rows if check(r) is None]


def test_exact_dedup_ignores_white_space_only() -> None:
    rows = [row("a  b"), row("a b\n", id="y"), row("A b"), row("a b", prompt="other")]
    assert kept("exact_dedup", rows) == [rows[0], rows[2], rows[3]]
    assert kept("exact_dedup", rows, on="completion") == [rows[0], rows[2]]
    assert kept("exact_dedup", rows, on="prompt") == [rows[0], rows[3]]


def test_exact_dedup_sees_the_system_prompt() -> None:
    with_system = Row("y", (Message("system", "s"), Message("user", "q")), "a", "stop", 1, "train")
    assert len(kept("exact_dedup", [row("a"), with_system])) == 2


def brute_force(rows: list[Row], threshold: float, size: int) -> list[Row]:
    """Keep the first; drop what is similar enough, in prompt and in completion, to a row already kept."""
    result: list[tuple[Row, set[str], set[str]]] = []
    for r in rows:
        prompt, completion = shingles(words(r.question), size), shingles(words(r.completion), size)
        if (prompt or completion) and any(
            min(jaccard(prompt, p), jaccard(completion, c)) >= threshold for _, p, c in result
        ):
            continue
        result.append((r, prompt, completion))
    return [r for r, _, _ in result]


SENTENCE = st.lists(st.sampled_from("abc"), max_size=9).map(" ".join)


@settings(max_examples=150)
@given(
    st.lists(st.tuples(SENTENCE, SENTENCE), max_size=14),
    st.sampled_from([0.3, 0.5, 0.8, 1.0]),
    st.integers(1, 5),
)
def test_near_dedup_equals_brute_force_on_small_sets(texts, threshold: float, size: int) -> None:
    rows = [row(completion, prompt, id=str(i)) for i, (prompt, completion) in enumerate(texts)]
    assert kept("near_dedup", rows, threshold=threshold, size=size) == brute_force(rows, threshold, size)


def test_near_dedup_finds_planted_edits_and_nothing_else() -> None:
    rng = random.Random(7)
    originals = [[f"w{rng.randrange(5000)}" for _ in range(60)] for _ in range(150)]
    edited = [[*text[:-2], "changed", "end"] for text in originals[:60]]
    rows = [row(" ".join(t), f"q{i}", id=str(i)) for i, t in enumerate(originals)]
    copies = [row(" ".join(t), f"q{i}", id=f"copy{i}") for i, t in enumerate(edited)]
    assert kept("near_dedup", rows + copies) == rows


def test_a_long_shared_prompt_does_not_make_samples_duplicates() -> None:
    prompt = " ".join(f"w{i}" for i in range(400))
    rows = [row(f"answer {i} says {i * 3} and {i * 5} and {i * 7}", prompt, id=str(i)) for i in range(4)]
    assert kept("near_dedup", rows) == rows
    assert kept("near_dedup", rows, on="prompt") == rows[:1]


def test_a_common_answer_does_not_make_questions_duplicates() -> None:
    rows = [row("Yes, it is.", f"Is {i} more than {i - 1}, and why do you think so?", id=str(i)) for i in range(4)]
    assert kept("near_dedup", rows) == rows


def test_near_dedup_by_characters() -> None:
    rows = [row("colour of the harbour"), row("color of the harbor", id="y"), row("something else")]
    assert kept("near_dedup", rows, unit="char", size=2, threshold=0.7) == [rows[0], rows[2]]


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.8, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("permutations", [64, 128, 256])
def test_bands_miss_almost_nothing_at_the_threshold(threshold: float, permutations: int) -> None:
    bands = _bands(threshold, permutations)
    miss = (1 - threshold ** (permutations // bands)) ** bands
    assert permutations % bands == 0
    assert miss <= 1e-4 or bands == permutations
    assert NearDedup(threshold=threshold, permutations=permutations).start(NOWHERE)(row("some words")) is None


def test_drop_truncated() -> None:
    rows = [row("a", finish="length", tokens=40), row("b"), row("c", finish="content_filter", tokens=99)]
    assert kept("drop_truncated", rows) == [rows[1]]
    assert kept("drop_truncated", rows, keep_if_min_tokens=40) == rows[:2]
    assert kept("drop_truncated", rows, keep_if_min_tokens=41) == [rows[1]]


def test_drop_empty() -> None:
    rows = [row(""), row(" \n\t"), row("."), row("half", finish="error")]
    assert kept("drop_empty", rows) == [rows[2]]


def test_length_bounds_are_inclusive() -> None:
    rows = [row("one two"), row("one two three"), row("one two three four")]
    assert kept("length", rows, min_words=3, max_words=3) == [rows[1]]
    by_tokens = [row("x", tokens=n) for n in (4, 5, 6)]
    assert kept("length", by_tokens, min_tokens=5, max_tokens=5) == [by_tokens[1]]


REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, but I can’t assist with that request.",
    "Sorry, I can't help with this.",
    "I cannot provide instructions for that.",
    "I can't provide any specific medical advice.",
    "As an AI language model, I cannot write harmful content.",
    "As an AI language model, I am unable to access the internet.",
    "I apologize, but I am not able to fulfill your request.",
    "Unfortunately, I cannot comply.",
    "**I'm sorry**, but I cannot assist you.",
    "I must decline.",
    "I have to respectfully decline to answer.",
    "I'm not comfortable providing that.",
    "I won't help you with that.",
    "That's not something I can help with.",
    "This is something I cannot do for you.",
    "It would be inappropriate for me to say.",
    "I'm sorry, I can't.",
    "I cannot in good conscience answer.",
    "“I will not engage in that.”",
]
ANSWERS = [
    "I can't be negative, because absolute values never are.",
    "I can't help but notice that the list is sorted.",
    "I cannot stress enough how useful os.walk is.",
    "I can't wait to explain this! A heap is a tree.",
    "I won't lie: recursion takes practice.",
    "Sorry state of affairs: the queue is empty.",
    "I'm sorry to hear that. Here is what you can try.",
    "Sorry for the delay! The function returns None.",
    "As an AI language model, I can explain that in two sentences.",
    "Unfortunately, the function raises a KeyError in that case.",
    "I am comfortable writing both C and Python.",
    "It is inappropriate to call a stranger by first name in some cultures.",
    "That's something I can explain: it sorts in place.",
    "I can't do this alone, said the robot, and the children laughed.",
    "You can't help with that in Python 2.",
    "The phrase 'I cannot help with that' is a refusal.",
    "I must admit that the name is odd.",
    "I can't write poetry, wrote the poet, and wrote a poem.",
    "He said: I'm sorry, but I can't help with that.",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_go(text: str) -> None:
    assert kept("drop_refusals", [row(text)]) == []


@pytest.mark.parametrize("text", ANSWERS)
def test_look_alikes_stay(text: str) -> None:
    assert len(kept("drop_refusals", [row(text)])) == 1


def test_own_refusal_patterns() -> None:
    rows = [row("Es tut mir leid, das kann ich nicht."), row("Das kann ich.")]
    assert kept("drop_refusals", rows) == rows
    assert kept("drop_refusals", rows, patterns=("es tut mir leid",)) == rows[1:]


def test_decontaminate_against_held_out_rows(tmp_path: Path) -> None:
    held = "the quick brown fox jumps over the lazy dog near the old river bank today"
    exchanges = [
        exchange("What is a heap?", "A tree.", split="holdout", system="Be brief."),
        exchange("Tell a story", held, split="holdout"),
        exchange("what is a HEAP", "Some tree."),
        exchange("Another story", f"Once, {held}, and then it slept."),
        exchange("What is a stack?", "A pile.", system="Be brief."),
    ]
    run = run_with(tmp_path, exchanges)
    report = curate(run, CurateConfig(root=["decontaminate"]))
    whys = [e.why for e in report.steps[0].examples]
    assert report.kept_train == 1
    assert whys[0] == f"prompt asks the same as held-out {exchanges[0].id}"
    assert whys[1].startswith(f"completion shares 13 words with held-out {exchanges[1].id}")


def test_decontaminate_against_a_benchmark(tmp_path: Path) -> None:
    benchmark = tmp_path / "bench.jsonl"
    benchmark.write_text('{"question": "What is two plus two?", "answer": "4"}\n')
    rows = [exchange("What is two plus two", "4."), exchange("What is one?", "4")]
    run = run_with(tmp_path / "run", rows)
    steps = [{"decontaminate": {"against": str(benchmark)}}]
    assert curate(run, CurateConfig(root=steps)).dropped == {"decontaminate": 1}
    with pytest.raises(BadInput, match="no such file"):
        curate(run, CurateConfig(root=[{"decontaminate": {"against": str(tmp_path / "none.jsonl")}}]))


def test_decontaminate_says_when_there_is_nothing_to_compare(tmp_path: Path) -> None:
    said: list[str] = []

    class Listening:
        def update(self, stage: str, done: float, total: float | None, note: str = "") -> None: ...

        def say(self, message: str) -> None:
            said.append(message)

    run = run_with(tmp_path, [exchange("q", "a")])
    curate(run, CurateConfig(root=["decontaminate"]), progress=Listening())
    assert said == ["decontaminate: nothing is held out in evaluate, so nothing to compare with"]


def test_the_documented_step_works() -> None:
    text = (Path(__file__).parents[2] / "docs" / "curate.md").read_text(encoding="utf-8")
    code = text.partition("```python\n")[2].partition("```")[0]
    names: dict[str, type[Step]] = {}
    exec(code, names)
    check = names["DropShouting"](share=0.6).start(NOWHERE)
    assert check(row("NO SHOUTING please")) == "10 of 16 letters are capitals"
    assert check(row("No shouting please")) is None


def test_every_step_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "curate.md").read_text(encoding="utf-8")
    for name, step in STEPS.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` ")]
        assert all(f"`{field}`" in line for field in step.model_fields), name
