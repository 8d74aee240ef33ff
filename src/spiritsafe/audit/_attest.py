"""What a student was trained on, as one signed statement that can be checked without this machine.

The statement is in-toto's. Its subjects are the files of the run (exchanges, training set, student) by hash; its
predicate says where they came from: every teacher with the terms its replies were collected under, what was overridden
and why, what it cost, what the training set was screened for. That the files belong together can be followed again: a
stage's fingerprint is the hash of its settings and of the file it read, so that exchanges, training set and student
form a chain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spiritsafe import __version__
from spiritsafe.audit._sign import IN_TOTO, public_hex, sign_dsse, statement, unsigned_dsse
from spiritsafe.errors import BadInput
from spiritsafe.exchanges import open_exchanges
from spiritsafe.runs import Run, hash_path, hash_value

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["ATTESTATION", "FORMAT", "attest", "lineage_faults"]

ATTESTATION = "urn:spiritsafe:attestation:1"
FORMAT = "spiritsafe-attestation/1"
_STAGES = ("collect", "curate", "train")
_WHO = (
    "teacher",
    "teacher_revision",
    "teacher_host",
    "terms_id",
    "terms_version",
    "watermark_key_id",
    "tokenizer_hash",
)
_SUMS = ("input_tokens", "output_tokens", "usd")


def attest(
    run: Run, *, signer: Ed25519PrivateKey | None = None, screened: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """A DSSE envelope over the lineage of the run's student; without a signer it has no signature and says so.

    screened: what `screen` found.

    Raises:
        BadInput: the run has no student, a file is missing or not what its stage wrote, or a stage did not read what
            the stage before it wrote.
    """
    try:
        payload = _statement(run, run.manifest(), None if signer is None else public_hex(signer), screened)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise BadInput(f"{run.manifest_file}: damaged, or not of a run of `distill`; restore it") from None
    return unsigned_dsse(payload, IN_TOTO) if signer is None else sign_dsse(payload, IN_TOTO, signer)


def _statement(
    run: Run, manifest: Mapping[str, Any], signer: str | None, screened: Sequence[Mapping[str, Any]]
) -> bytes:
    stages = _stages(run, manifest)
    subjects = {output["path"]: output["sha256"] for stage in stages.values() for output in stage["outputs"].values()}
    recipe = manifest.get("recipe")
    predicate = {
        "format": FORMAT,
        "student": manifest.get("name"),
        "attested_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "signer": signer,
        "spiritsafe": __version__,
        "recipe": recipe,
        "stages": stages,
        "teachers": _teachers(run),
        "terms": manifest.get("terms", []),
        "cost": manifest["stages"]["collect"].get("summary", {}),
        "curation": manifest["stages"]["curate"].get("summary", {}),
        "base": _base(recipe),
        "screened": [dict(one) for one in screened],
        "versions": manifest.get("versions", {}),
    }
    if faults := lineage_faults(predicate, subjects):
        raise BadInput(
            f"{run.path}: {faults[0]}; run the stages again, so that each reads what the one before it wrote"
        )
    return statement(subjects, ATTESTATION, predicate)


def lineage_faults(predicate: Mapping[str, Any], subjects: Mapping[str, str]) -> list[str]:
    """Where the chain from exchanges to student is broken; nothing if it holds.

    The fingerprints are those of `distill`: a stage's settings and the hash of what it read.

    Raises:
        KeyError, TypeError, AttributeError: the predicate is of another form.
    """
    recipe, stages = predicate["recipe"], predicate["stages"]
    outputs = [output for stage in _STAGES for output in stages[stage]["outputs"].values()]
    faults = [
        f"{output['path']} is not among the files attested, or with another hash"
        for output in outputs
        if subjects.get(output["path"]) != output["sha256"]
    ]
    files = {name: stages[stage]["outputs"][name] for stage, name in (("collect", "exchanges"), ("curate", "curated"))}
    curated = hash_value([recipe["curate"], files["exchanges"]["sha256"]])
    if stages["curate"]["fingerprint"] != curated:
        faults.append("the training set was not made of these exchanges with this recipe")
    teacher = recipe["teacher"]
    trained = [recipe["student"], recipe["train"], teacher["path"] or teacher["weights"], files["curated"]["sha256"]]
    if stages["train"]["fingerprint"] != hash_value(trained):
        faults.append("the student was not trained on this training set with this recipe")
    if not any(output["path"].endswith(".safetensors") for output in stages["train"]["outputs"].values()):
        faults.append("no weights of a student are among the files")
    return faults


def _stages(run: Run, manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Fingerprint and files of each stage, after looking that they are there and as it wrote them."""
    found = {}
    for stage in _STAGES:
        done = manifest.get("stages", {}).get(stage)
        if not isinstance(done, dict):
            raise BadInput(f"{run.path}: `{stage}` has not finished in this run; there is no student to attest")
        for output in done["outputs"].values():
            path = run.path / output["path"]
            if not path.is_file():
                raise BadInput(f"{path}: missing, but `{stage}` wrote it; restore it, or run the stage again")
            if hash_path(path) != output["sha256"]:
                raise BadInput(f"{path}: changed since `{stage}` wrote it; restore it, or run the stage again")
        found[stage] = {"fingerprint": done["fingerprint"], "outputs": done["outputs"]}
    return found


def _teachers(run: Run) -> list[dict[str, Any]]:
    """Who answered, under which terms: rows collected, rows trained on, tokens and dollars."""
    rows: Counter[tuple[Any, ...]] = Counter()
    sums: dict[tuple[Any, ...], list[float]] = {}
    for who, _, amounts in _rows(run.exchanges):
        rows[who] += 1
        sums[who] = [have + more for have, more in zip(sums.get(who, [0, 0, 0]), amounts, strict=True)]
    trained = Counter(who for who, split, _ in _rows(run.curated) if split == "train")
    return [
        dict(zip(_WHO, who, strict=True))
        | {"rows": rows[who], "rows_trained_on": trained[who]}
        | {name: round(total, 9) for name, total in zip(_SUMS, sums.get(who, [0, 0, 0]), strict=True)}
        for who in sorted({*rows, *trained}, key=str)
    ]


def _rows(path: Path) -> Any:
    with open_exchanges(path) as file:
        for batch in file.iter_batches(columns=[*_WHO, "split", *_SUMS]):
            for row in batch.to_pylist():
                yield tuple(row[name] for name in _WHO), row["split"], [row[name] or 0 for name in _SUMS]


def _base(recipe: Any) -> dict[str, Any] | None:
    """The weights that the student began as, hashed as they are now; None where it began at random."""
    student, teacher = recipe["student"], recipe["teacher"]
    init = student["init"]
    pruned = student["source"] or teacher["path"] or teacher["weights"]
    source = {"scratch": None, "prune": pruned}.get(init, init)
    if source is None:
        return None
    path = Path(source).expanduser()
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return {
        "init": init if init == "prune" else "whole",
        "name": path.name,
        "sha256": {file.name: hash_path(file) for file in files},
    }
