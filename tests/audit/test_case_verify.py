"""Genuine cases pass both verifiers; what was tampered with fails, and the check that caught it says so in one line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import case_kit as kit
import pytest
from coins_kit import NOW

from spiritsafe.keys import commit_keys, new_keys, open_leaf
from spiritsafe.ledger import canonical_json
from timestamps import Authority, running_authority

Change = Callable[[kit.Files], kit.Files]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory):
    with running_authority(tmp_path_factory.mktemp("tsa")) as running:
        yield running


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> kit.Made:
    """Signed and timestamped."""
    return kit.coins(tmp_path_factory.mktemp("whole"), authority=authority)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> kit.Made:
    """Neither signed nor timestamped, so that only what is tampered with fails. Some pairs are not opened."""
    return kit.coins(tmp_path_factory.mktemp("plain"), signed=False, open_pairs=20)


@pytest.fixture(scope="module")
def marks(tmp_path_factory: pytest.TempPathFactory) -> kit.Made:
    return kit.marks(tmp_path_factory.mktemp("marks"), signed=False, texts=8, tokens=50)


def failing(found: Any) -> set[str]:
    return {name for name, state in found.checks.items() if state == "fail"}


class TestGenuine:
    def test_with_what_anchors_it_a_case_passes_and_is_proof(self, whole: kit.Made) -> None:
        found = whole.verify()
        assert set(found.checks.values()) == {"pass"} and found.ok, found.reasons
        assert found.finding.grade == "proof" and found.finding == whole.judged.finding
        assert found.to_dict() == {
            "ok": True,
            "checks": dict.fromkeys(("bytes", "signatures", "time_order", "plan", "recompute"), "pass"),
            "finding": {
                "class": "proof", "log10_p": found.finding.log10_p, "statement": found.finding.statement
            },
        }  # fmt: skip

    def test_without_it_the_same_case_is_a_lead(self, whole: kit.Made) -> None:
        found = whole.verify(signer=None, tsa=None)
        assert found.ok and found.finding.grade == "lead"
        assert found.checks["signatures"] == found.checks["time_order"] == "unanchored"
        assert "lead and not proof" in found.finding.statement

    @pytest.mark.parametrize("given", [{"signer": None}, {"tsa": None}])
    def test_one_anchor_of_two_is_not_enough(self, whole: kit.Made, given: dict[str, Any]) -> None:
        found = whole.verify(**given)
        assert found.ok and found.finding.grade == "lead"

    def test_a_case_that_nobody_signed_or_stamped_is_a_lead(self, plain: kit.Made, marks: kit.Made) -> None:
        for made in (plain, marks):
            found = made.verify()
            assert found.ok, found.reasons
            assert found.finding.grade == made.judged.finding.grade == "lead"

    def test_an_innocent_is_inconclusive_and_so_passes(self, tmp_path: Path) -> None:
        made = kit.coins(tmp_path, likes=0, signed=False)
        found = made.verify()
        assert found.ok and found.finding.grade == "inconclusive"
        assert "does not show that it is true" in found.finding.statement
        assert kit.second(made.path).returncode == 0

    def test_the_second_verifier_agrees(self, whole: kit.Made, plain: kit.Made, marks: kit.Made) -> None:
        for made in (whole, plain, marks):
            done = kit.second(made.path)
            assert done.returncode == 0, done.stdout + done.stderr
            for outcome in made.judged.outcomes:
                assert f"{outcome.test}: log10 p = {outcome.log10_p:.6f}" in done.stdout
            assert "not checked here: signatures, timestamps" in done.stdout


def transcript(change: Callable[[list[dict[str, Any]]], Any], name: str = "transcripts.jsonl") -> Change:
    return lambda files: kit.retell(files, change, name)


def document(name: str, change: Callable[[Any], Any]) -> Change:
    return lambda files: dict(files) | {name: kit.edit(files[name], change)}


def plan(change: Callable[[Any], Any]) -> Change:
    return lambda files: kit.replan(files, change)


def put(**inside: Any) -> Callable[[Any], None]:
    """Set dotted.paths (written with __) to values."""

    def change(value: Any) -> None:
        for path, new in inside.items():
            *parents, last = [int(part) if part.isdigit() else part for part in path.split("__")]
            at = value
            for part in parents:
                at = at[part]
            at[last] = new

    return change


def last_ts(seconds: float) -> Callable[[list[dict[str, Any]]], None]:
    def change(lines: list[dict[str, Any]]) -> None:
        lines[-1]["ts"] += seconds

    return change


def better(lines: list[dict[str, Any]]) -> None:
    """An answer that the suspect never gave."""
    lines[0]["got"] = {"first": lines[0]["got"]["second"], "second": lines[0]["got"]["first"]}


def forged_pair(files: kit.Files) -> kit.Files:
    (name,) = [one for one in files if one.endswith("twins.jsonl")]
    lines = [json.loads(line) for line in files[name].splitlines()]
    lines[0]["coin"] = 1 - lines[0]["coin"]
    return kit.refreeze(files, "twins.jsonl", b"".join(canonical_json(line) + b"\n" for line in lines))


def shorter_ledger(files: kit.Files) -> kit.Files:
    """So that nobody sees that pairs were kept back: those that are not opened are cut out."""
    (name,) = [one for one in files if one.endswith("ledger.jsonl")]
    lines = files[name].splitlines(keepends=True)
    return kit.refreeze(files, "ledger.jsonl", b"".join(lines[:20] + lines[24:]))


TAMPERED: dict[str, tuple[Change, str, str, str]] = {
    # what: (how, the check that catches it, what it says, what the second verifier's line begins with)
    "the last answers cut off": (transcript(lambda lines: lines[:-3]), "plan", "have no line", "plan"),
    "an answer taken out": (transcript(lambda lines: lines[:4] + lines[5:]), "plan", "have no line", "plan"),
    "no transcript": (transcript(lambda lines: []), "plan", "have no line", "plan"),
    "another question": (transcript(put(**{"2__item": "req_x"})), "plan", "is not asked by the plan", "plan"),
    "asked otherwise": (transcript(put(**{"2__asked": {"request_id": "req_9"}})), "plan", "asked otherwise", "plan"),
    "asked again": (transcript(lambda lines: [*lines, lines[-1]]), "plan", "answers were chosen", "plan"),
    "an attempt too many": (transcript(put(**{"3__attempt": 2})), "plan", "attempt 2", "plan"),
    "tests out of order": (transcript(lambda lines: lines[::-1]), "plan", "out of order", ""),
    "a line of no test": (transcript(put(**{"2__test": "other"})), "plan", "is not asked by the plan", "plan"),
    "attempts forgotten": (transcript(lambda lines: [], "attempts.jsonl"), "plan", "attempts.jsonl", "plan"),
    "another suspect": (
        transcript(put(**{"0__suspect": {"weights": "b"}}), "attempts.jsonl"), "plan", "not that of the attempts", ""
    ),
    "another subject": (document("subject.json", put(name="somebody")), "plan", "the plan asks suspect", ""),
    "another null": (plan(put(nulls={"twins": "-", "canaries": "-"})), "plan", "null hypotheses", ""),
    "a plan that does not fit": (document("plan.json", put(plan__alpha=0.01)), "plan", "another plan", "chain"),
    "another seed": (plan(put(decoy_seed="00" * 32)), "plan", "decoy seed", ""),
    "a plan without a part": (plan(lambda value: {k: v for k, v in value.items() if k != "nulls"}), "bytes", "plan", ""),
    "fewer committed": (plan(put(commitments__twins__committed=3)), "plan", "", ""),
    "another head": (
        plan(put(commitments__twins__ledger_head={"seq": 1, "hash": "0"})), "plan", "", ""
    ),
    "an input changed": (
        lambda files: {n: raw.replace(b"left", b"LEFT") if n.endswith("twins.jsonl") else raw for n, raw in files.items()},
        "plan", "is not the file that was frozen", "plan",
    ),
    "an input taken out": (
        lambda files: {n: raw for n, raw in files.items() if not n.endswith("twins.jsonl")},
        "plan", "does not have it", "plan",
    ),
    "an input added": (lambda files: files | {"inputs/0123456789ab-x": b"x"}, "plan", "does not name", ""),
    "a control added": (lambda files: files | {"controls/x.jsonl": b""}, "plan", "control that the plan does not", "plan"),
    "commitments retold": (document("commitments.json", put(ledger={})), "plan", "commitments.json", ""),
    "openings retold": (document("reveal.json", put(twins={})), "plan", "reveal.json", ""),
    "a coin turned": (forged_pair, "plan", "not what was committed to", "coins"),
    "a ledger cut": (shorter_ledger, "plan", "not a whole ledger", "coins"),
    "an answer bettered": (transcript(better), "recompute", "results.json", "numbers"),
    "a better p": (document("results.json", put(tests__0__log10_p=-30.0)), "recompute", "log10_p", "numbers"),
    "a little better p": (
        document("results.json", lambda value: put(finding__log10_p=value["finding"]["log10_p"] - 1e-6)(value)),
        "recompute", "finding.log10_p", "numbers",
    ),
    "more scored": (document("results.json", put(tests__0__n_scored=99)), "recompute", "n_scored", "numbers"),
    "a bolder class": (document("results.json", put(finding__class="proof")), "recompute", "finding.class", ""),
    "a bolder sentence": (document("results.json", put(finding__statement="It is a copy.")), "recompute", "statement", ""),
    "a larger effect": (document("results.json", put(tests__0__effect__value=2.0)), "recompute", "effect.value", ""),
    "notes left out": (document("results.json", put(tests__0__notes=[])), "recompute", "notes", ""),
    "fewer attempts": (document("results.json", put(attempts=0)), "recompute", "attempts", "plan"),
    "another bill": (document("mlbom.cdx.json", put(version=2)), "recompute", "mlbom", ""),
    "an impossible answer": (transcript(put(**{"0__got": {"first": "?"}})), "recompute", "log-probabilities", "bytes"),
    "asked before the plan": (transcript(put(**{"0__ts": NOW})), "time_order", "before the plan stood", ""),
    "begun before the plan": (transcript(put(**{"0__ts": NOW}), "attempts.jsonl"), "time_order", "before the plan", ""),
    "asked before its attempt": (
        transcript(last_ts(1e6), "attempts.jsonl"), "time_order", "before the attempt that asked it began", ""
    ),
    "a plan of tomorrow": (plan(put(frozen_at="2099-01-01T00:00:00Z")), "time_order", "before the plan stood", ""),
    "a plan of no time": (plan(put(frozen_at="soon")), "time_order", "no time", ""),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERED)
def test_a_case_that_was_tampered_with_is_caught(what: str, plain: kit.Made, tmp_path: Path) -> None:
    """By someone who makes manifest and chains fit again."""
    how, check, says, second = TAMPERED[what]
    path = kit.again(tmp_path / "CASE.zip", how(plain.files()))
    found = plain.verify(path)
    assert not found.ok and found.checks[check] == "fail", found.reasons
    assert any(says in line for line in found.reasons[check]), found.reasons[check]
    assert found.finding.grade == "inconclusive" and "Nothing follows" in found.finding.statement
    for lines in found.reasons.values():
        assert all("\n" not in line and "/tmp" not in line for line in lines)
    if second:
        done = kit.second(path)
        assert done.returncode == 1
        wrong = [line for line in done.stdout.splitlines() if line.startswith("WRONG  ")]
        assert wrong[0].startswith(f"WRONG  {second}: "), wrong


def test_there_are_enough_kinds_of_tampering() -> None:
    assert len(TAMPERED) >= 40 and sum(second != "" for *_, second in TAMPERED.values()) >= 20


def test_a_case_of_another_version_is_held_to_its_numbers(plain: kit.Made, tmp_path: Path) -> None:
    files = plain.files()
    files["results.json"] = kit.edit(
        files["results.json"], put(code={"spiritsafe": "9", "sha256": "0"}, finding__statement="Otherwise said.")
    )
    found = plain.verify(kit.again(tmp_path / "a.zip", files))
    assert found.ok and found.finding == plain.verify().finding and any("not words" in note for note in found.notes)
    files["results.json"] = kit.edit(files["results.json"], put(tests__1__log10_p=-50.0))
    assert failing(plain.verify(kit.again(tmp_path / "b.zip", files))) == {"recompute"}


def test_hypotheses_worded_by_another_version_are_ours(plain: kit.Made, tmp_path: Path) -> None:
    worded = put(nulls={"twins": "Otherwise.", "canaries": "Otherwise."}, code={"spiritsafe": "9", "sha256": "0"})
    files = kit.replan(plain.files(), worded)
    found = plain.verify(kit.again(tmp_path / "a.zip", files))
    assert found.checks["plan"] == "pass" and any("as ours says" in note for note in found.notes)
    assert "Otherwise" not in found.finding.statement


class TestKeys:
    def test_a_key_that_was_never_committed_to(self, marks: kit.Made, tmp_path: Path) -> None:
        """The likelier key of another key set, named in a plan that fits in every other way."""
        new_keys(tmp_path / "K.json", marking={"scheme": "gumbel-dual"}, epoch="2026-10")
        theirs = commit_keys(tmp_path / "K.json", slots=8)
        leaf = open_leaf(tmp_path / "K.json", "2026-10", "epoch", commitment=theirs).model_dump(mode="json")
        self._opened(marks, tmp_path, leaf)

    def test_a_committed_leaf_with_another_key(self, marks: kit.Made, tmp_path: Path) -> None:
        leaf = json.loads(marks.files()["reveal.json"])["leaves"]["radioactivity"][0]
        self._opened(marks, tmp_path, leaf | {"key": "00" * 16})

    def test_an_account_s_key_as_the_epoch_s(self, marks: kit.Made, tmp_path: Path) -> None:
        leaf = json.loads(marks.files()["reveal.json"])["leaves"]["radioactivity"][2]
        self._opened(marks, tmp_path, leaf | {"purpose": "epoch", "slot": None})

    def _opened(self, marks: kit.Made, tmp_path: Path, leaf: dict[str, Any]) -> None:
        files = marks.files()
        files["reveal.json"] = kit.edit(files["reveal.json"], put(leaves__radioactivity__0=leaf))
        said = {key: leaf[key] for key in ("key_set", "purpose", "scheme", "epoch", "slot")}
        said["sha256"] = hashlib.sha256(canonical_json(leaf)).hexdigest()

        def change(value: Any) -> None:
            value["leaves"]["radioactivity"][0] = said
            value["decoy_seed"] = hashlib.sha256(canonical_json([value["inputs"], value["leaves"]])).hexdigest()

        path = kit.again(tmp_path / "CASE.zip", kit.replan(files, change))
        found = marks.verify(path)
        assert found.checks["plan"] == "fail" and "is not covered by the commitment" in found.reasons["plan"][0]
        done = kit.second(path)
        assert done.returncode == 1 and "never committed to" in done.stdout

    def test_fewer_keys_counted_than_committed_to(self, tmp_path: Path) -> None:
        made = kit.marks(tmp_path, signed=False, texts=3, tokens=20)
        path = kit.again(tmp_path / "X.zip", kit.replan(made.files(), put(families__radioactivity=0)))
        assert "families" in made.verify(path).reasons["plan"][0]
        assert kit.second(path).returncode == 1

    def test_predictions_bettered(self, marks: kit.Made, tmp_path: Path) -> None:
        def better(lines: list[dict[str, Any]]) -> None:
            lines[0]["got"]["argmax"][5:9] = [1, 2, 3, 4]

        path = kit.again(tmp_path / "CASE.zip", kit.retell(marks.files(), better))
        assert failing(marks.verify(path)) == {"recompute"}
        done = kit.second(path)
        assert done.returncode == 1 and "WRONG  numbers: " in done.stdout

    def test_texts_that_were_not_frozen(self, marks: kit.Made, tmp_path: Path) -> None:
        def other(lines: list[dict[str, Any]]) -> None:
            lines[0]["asked"]["ids"][-1] ^= 1

        path = kit.again(tmp_path / "CASE.zip", kit.retell(marks.files(), other))
        assert marks.verify(path).checks["plan"] == "fail"
        assert "WRONG  plan: " in kit.second(path).stdout


class TestTimes:
    def test_a_commitment_newer_than_the_release(self, tmp_path: Path, authority: Authority) -> None:
        """Keys chosen once the texts were known: whether a token says so or the commitment itself."""
        for stamped, name in ((authority, "a"), (None, "b")):
            (tmp_path / name).mkdir()
            made = kit.marks(tmp_path / name, created=NOW, authority=stamped, texts=3, tokens=20)
            found = made.verify()
            assert failing(found) == {"time_order"}
            assert "could have been chosen once the texts were known" in found.reasons["time_order"][0]
            assert found.finding.grade == "inconclusive"

    def test_texts_without_a_time_leave_the_commitment_unanchored(self, tmp_path: Path, authority: Authority) -> None:
        made = kit.marks(tmp_path, created=float("nan"), authority=authority, texts=3, tokens=20)
        found = made.verify()
        assert found.ok and found.checks["time_order"] == "unanchored"
        assert "say no time" in found.reasons["time_order"][0]

    def test_a_pair_released_before_it_was_committed_to(self, plain: kit.Made, tmp_path: Path) -> None:
        files = plain.files()
        (name,) = [one for one in files if one.endswith("twins.jsonl")]
        lines = [json.loads(line) for line in files[name].splitlines()]
        lines[3]["created"] -= 3600
        raw = b"".join(canonical_json(line) + b"\n" for line in lines)
        found = plain.verify(kit.again(tmp_path / "CASE.zip", kit.refreeze(files, "twins.jsonl", raw)))
        assert "was released" in found.reasons["time_order"][0] and "time_order" in failing(found)


class TestSignatures:
    def test_whoever_signs_anew_signs_as_somebody_else(self, whole: kit.Made, tmp_path: Path) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        from spiritsafe.audit._sign import IN_TOTO, sign_dsse

        files = whole.files()
        key = Ed25519PrivateKey.generate()
        envelope = json.loads(files["attestation.dsse.json"])
        payload = __import__("base64").b64decode(envelope["payload"])
        files["attestation.dsse.json"] = canonical_json(sign_dsse(payload, IN_TOTO, key))
        found = whole.verify(kit.again(tmp_path / "a.zip", files, manifest=False))
        assert failing(found) == {"signatures"} and "no signature of the key" in found.reasons["signatures"][0]
        mine = key.public_key().public_bytes_raw()
        found = whole.verify(signer=mine)
        assert failing(found) == {"signatures"} and "not the key given" in found.reasons["signatures"][0]

    @pytest.mark.parametrize(
        ("gone", "says"),
        [
            ("attestation.dsse.json", "the signature is not in the case"),
            ("plan.sig.json", "the signature is not in the case"),
            ("plan.tsr", "its timestamp is not in the case"),
        ],
    )
    def test_what_the_plan_promises_has_to_be_there(
        self, whole: kit.Made, tmp_path: Path, gone: str, says: str
    ) -> None:
        files = whole.files()
        del files[gone]
        found = whole.verify(kit.again(tmp_path / "a.zip", files))
        assert found.checks["signatures"] == "fail" and any(says in line for line in found.reasons["signatures"])

    def test_any_change_that_fits_otherwise_breaks_the_signature(self, whole: kit.Made, tmp_path: Path) -> None:
        files = document("subject.json", put(probes=[1]))(whole.files())
        found = whole.verify(kit.again(tmp_path / "a.zip", files))
        assert "signed for other bytes than those of manifest.json" in found.reasons["signatures"][0]

    def test_another_key_under_trust(self, whole: kit.Made, tmp_path: Path) -> None:
        files = whole.files() | {"trust/signer.pub": b"00" * 32 + b"\n"}
        found = whole.verify(kit.again(tmp_path / "a.zip", files))
        assert any("trust/signer.pub" in line for line in found.reasons["signatures"])

    def test_a_timestamp_of_other_bytes(self, whole: kit.Made, tmp_path: Path) -> None:
        files = whole.files()
        (token,) = [name for name in files if name.endswith(".tsr") and name.startswith("inputs/")]
        files["plan.tsr"] = files[token]
        path = kit.again(tmp_path / "a.zip", files)
        for roots in (whole.roots, None):
            lines = whole.verify(path, tsa=roots).reasons["signatures"]
            assert any(line.startswith("plan.tsr: the timestamp") for line in lines)

    def test_a_timestamp_of_another_authority(self, whole: kit.Made, tmp_path: Path) -> None:
        with running_authority(tmp_path / "tsa") as other:
            found = whole.verify(tsa=other.roots)
        assert failing(found) == {"signatures"} and "does not hold" in found.reasons["signatures"][0]

    def test_an_unsigned_case_is_not_signed_by_the_key_given(self, plain: kit.Made) -> None:
        found = plain.verify(signer=b"\1" * 32)
        assert failing(found) == {"signatures"}

    def test_what_is_not_to_be_signed_is_not(self, plain: kit.Made, whole: kit.Made, tmp_path: Path) -> None:
        files = plain.files() | {"attestation.dsse.json": whole.files()["attestation.dsse.json"]}
        found = plain.verify(kit.again(tmp_path / "a.zip", files))
        assert "names no signer" in found.reasons["signatures"][0]
