"""What a plan names: every file found, hashed, and given its name in the case; opened keys held against commitments.

Paths in PLAN.yaml are relative to its folder. `gather` reads them all, at freezing and again before each run: whatever
it finds then must be what was frozen.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spiritsafe.audit._plan import AuditPlan, RadioactivityConfig, TestConfig
from spiritsafe.audit._sign import load_signer, public_hex
from spiritsafe.config import load_config
from spiritsafe.errors import BadInput
from spiritsafe.keys import Commitment, Leaf, load_commitment, load_leaves, verify_leaf
from spiritsafe.ledger import canonical_json
from spiritsafe.runs import hash_path, hash_value

__all__ = ["Inputs", "describe_commitment", "describe_leaf", "gather", "hold_leaves", "name_of", "with_folders"]

_SHORT = 12  # hex digits of a hash in a name
_LONGEST = 80
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TOKENIZER_FILES = re.compile(
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json|merges\.txt|vocab\.txt"
    r"|tokenizer\.model|[\w.-]*\.jinja"
)

# The fields of a test that name files, and their role. Weights are hashed and stay where they are.
_FILES = {
    "radioactivity": {"texts": "texts", "params": "params", "commitment": "commitment"},
    "twins": {"pairs": "pairs", "ledger": "ledger"},
    "canaries": {"canaries": "canaries", "ledger": "ledger"},
    "equality": {"reference": "texts"},
    "similarity": {"reference": "texts", "controls": "texts", "base": "texts", "control_bases": "texts"},
    "lineage": {},
}
_WEIGHTS = {"lineage": ("teacher", "base", "siblings")}
_PUBLISHED = ("commitment", "ledger")  # may have FILE.tsr beside them


@dataclass(slots=True)
class Inputs:
    """All that PLAN.yaml names.

    plan: with names in place of paths.  files: name in the case → file.  listed, weights: as the frozen JSON has them.
    sources: name of weights → path or hub id.  published: test → (commitment or ledger, its timestamp or None), names.
    """

    plan: AuditPlan
    files: dict[str, Path] = field(default_factory=dict)
    listed: dict[str, dict[str, Any]] = field(default_factory=dict)
    weights: dict[str, dict[str, Any]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    leaves: dict[str, tuple[Leaf, ...]] = field(default_factory=dict)
    commitments: dict[str, Commitment] = field(default_factory=dict)
    published: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    signer: Path | None = None


def gather(plan_file: Path) -> Inputs:
    """Read PLAN.yaml and everything it names.

    Raises:
        BadInput: a file is missing or unreadable, a leaf is not covered by the commitment, a key is no key.
    """
    plan = load_config(plan_file, AuditPlan)
    if plan.decoy_seed is not None and len(plan.decoy_seed) % 2:
        raise BadInput(f"{plan_file}: decoy_seed: an odd number of hex digits; write whole bytes")
    found = _Gathering(plan_file, Inputs(plan))
    tests = tuple(found.test(test) for test in plan.tests)
    return found.finish(tests)


def name_of(test: TestConfig) -> str:
    """How results call a test."""
    return test.name or test.kind


def describe_leaf(leaf: Leaf) -> dict[str, Any]:
    """Which key, and the hash of all of it: salted, so that it says nothing before the key is opened."""
    document = leaf.model_dump(mode="json")
    shown = {name: document[name] for name in ("key_set", "purpose", "scheme", "epoch", "slot")}
    return shown | {"sha256": hashlib.sha256(canonical_json(document)).hexdigest()}


def describe_commitment(commitment: Commitment) -> dict[str, Any]:
    """What a frozen plan says of a commitment to keys."""
    return commitment.model_dump(mode="json", include={"root", "key_set", "committed", "created"})


def hold_leaves(leaves: Iterable[tuple[str, Leaf]], commitment: Commitment, where: str) -> tuple[Leaf, ...]:
    """The leaves (with what to call each), if the commitment covers every one of them and none comes twice.

    Raises:
        BadInput: it does not.
    """
    held: dict[tuple[str, str, str, int | None], Leaf] = {}
    for label, leaf in leaves:
        if not verify_leaf(leaf, commitment.root):
            raise BadInput(
                f"{label}: the {leaf.purpose} key of {leaf.key_set}, epoch {leaf.epoch}, is not covered by {where}; "
                "open it against the commitment that was published (watermark keys open --commitment)"
            )
        place = (leaf.purpose, leaf.scheme, leaf.epoch, leaf.slot)
        if place in held:
            raise BadInput(f"{label}: this key is given twice; name it once")
        held[place] = leaf
    return tuple(held.values())


def with_folders(files: Mapping[str, Path]) -> dict[str, Path]:
    """The files, and the folders that some of them stand in (inputs/NAME/FILE)."""
    folders = {name.rpartition("/")[0]: path.parent for name, path in files.items() if name.count("/") > 1}
    return {**files, **folders}


class _Gathering:
    def __init__(self, plan_file: Path, found: Inputs) -> None:
        self._folder, self._kept, self._found = plan_file.parent, plan_file.with_suffix(".inputs"), found

    def test(self, test: TestConfig) -> TestConfig:
        """The test with names in place of its paths."""
        name, changed = name_of(test), dict[str, Any]()
        for key, role in _FILES[test.kind].items():
            changed[key] = self._each(getattr(test, key), lambda path, role=role: self._file(path, role))
        for key in _WEIGHTS.get(test.kind, ()):
            changed[key] = self._each(getattr(test, key), self._weigh)
        for key in _PUBLISHED:
            if changed.get(key):
                self._found.published[name] = (changed[key], self._timestamp(getattr(test, key)))
        if isinstance(test, RadioactivityConfig):
            changed |= {"tokenizer": self._tokenizer(test.tokenizer)} | self._leaves(name, test)
        return test.model_copy(update=changed)

    def finish(self, tests: Sequence[TestConfig]) -> Inputs:
        plan, found = self._found.plan, self._found
        controls = {}
        for name, control in plan.controls.items():
            if control.watermark is not None:
                raise BadInput(f"controls.{name}: a control answers unmarked; remove its watermark")
            path = None if control.path is None else self._weigh(control.path)
            controls[name] = control.model_copy(update={"path": path})
        base = plan.subject.base
        subject = plan.subject.model_copy(update={"base": base and self._weigh(base, or_words=True)})
        signer = None
        if plan.signer is not None:
            found.signer = self._path(plan.signer)
            signer = public_hex(load_signer(found.signer))
        found.plan = plan.model_copy(
            update={"tests": tuple(tests), "controls": controls, "subject": subject, "signer": signer}
        )
        found.listed = dict(sorted(found.listed.items()))
        return found

    def _each(self, value: Any, name: Any) -> Any:
        if isinstance(value, dict):
            return {key: name(inner) for key, inner in value.items()}
        return None if value is None else name(value)

    def _path(self, text: str) -> Path:
        return self._folder / Path(text).expanduser()

    def _file(self, text: str, role: str) -> str:
        path = self._path(text)
        if not path.is_file():
            raise BadInput(f"{path}: {'not a file' if path.exists() else 'no such file'}; the plan names it as {role}")
        digest = _hashed(path)
        return self._keep(f"inputs/{_named(digest, path.name)}", path, digest, role)

    def _keep(self, name: str, path: Path, digest: str, role: str) -> str:
        self._found.files[name] = path
        self._found.listed.setdefault(name, {"sha256": digest, "bytes": path.stat().st_size, "role": role})
        return name

    def _timestamp(self, text: str) -> str | None:
        beside = text + ".tsr"
        return self._file(beside, "timestamp") if self._path(beside).is_file() else None

    def _leaves(self, name: str, test: RadioactivityConfig) -> dict[str, Any]:
        if (test.leaves or test.per_account) and test.commitment is None:
            raise BadInput(f"tests.{name}: opened keys prove nothing without the commitment that was published before")
        if test.commitment is None:
            return {}
        commitment = load_commitment(self._path(test.commitment))
        shared, accounts = (
            [(text, leaf) for text in given for leaf in load_leaves(self._path(text))]
            for given in (test.leaves, test.per_account)
        )
        for place, (text, leaf) in enumerate([*shared, *accounts]):
            if (leaf.purpose == "account") != (place >= len(shared)):
                raise BadInput(
                    f"{text}: is an {leaf.purpose} key; account keys belong in per_account, others in leaves"
                )
        held = hold_leaves([*shared, *accounts], commitment, test.commitment)
        self._found.leaves[name], self._found.commitments[name] = held, commitment
        names = [f"leaf/{describe_leaf(leaf)['sha256'][:_SHORT]}" for leaf in held]
        return {"leaves": tuple(names[: len(shared)]), "per_account": tuple(names[len(shared) :])}

    def _weigh(self, text: str, or_words: bool = False) -> str:
        """The name of weights. or_words: what is no path here stays as it is."""
        path = self._path(text)
        if path.exists():
            path = path.resolve()
            digest = _hash_weights(path)
            name = f"weights/{_named(digest, path.name)}"
            self._found.weights[name], self._found.sources[name] = {"sha256": digest, "name": path.name}, str(path)
            return name
        if or_words:
            return text
        if not _HUB_ID.fullmatch(text):
            raise BadInput(f"{path}: no such file or folder; give weights: a folder, a .gguf or .safetensors, a hub id")
        name = f"weights/{_named(hash_value(text), text)}"
        self._found.weights[name], self._found.sources[name] = {"sha256": None, "name": text}, text
        return name

    def _tokenizer(self, text: str) -> str:
        folder = self._tokenizer_folder(text)
        files = sorted(f for f in folder.iterdir() if f.is_file() and _TOKENIZER_FILES.fullmatch(f.name))
        digests = [_hashed(file) for file in files]
        whole = hash_value([[file.name, digest] for file, digest in zip(files, digests, strict=True)])
        kept = folder.parent == self._kept
        name = f"inputs/{_named(whole, folder.name.partition('-')[2] if kept else folder.name)}"
        for file, digest in zip(files, digests, strict=True):
            self._keep(f"{name}/{file.name}", file, digest, "tokenizer")
        return name

    def _tokenizer_folder(self, text: str) -> Path:
        """A folder of files that `load_tokenizer` reads: the one given, or PLAN.inputs/…, made from what was given."""
        path = self._path(text)
        if path.name == "tokenizer.json":
            path = path.parent
        if (path / "tokenizer_config.json").is_file() and (path / "tokenizer.json").is_file():
            return path.resolve()
        if path.is_file() and path.suffix == ".json":
            raise BadInput(f"{path}: needs the tokenizer_config.json that belongs to it, in the same folder")
        source = path.resolve() if path.exists() else Path(text)
        digest = _hash_weights(source) if path.exists() else hash_value(text)
        folder = self._kept / _named(digest, source.name.removesuffix(".gguf"))
        if not (folder / "tokenizer_config.json").is_file():
            from spiritsafe.teachers import load_tokenizer

            tokenizer = load_tokenizer(source if path.exists() else text)
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._kept) as made:
                tokenizer.save_pretrained(made)
                for file in sorted(Path(made).iterdir(), key=lambda file: file.name == "tokenizer_config.json"):
                    file.replace(folder / file.name)  # the config last: with it the folder counts as whole
        return folder


def _named(digest: str, name: str) -> str:
    return f"{digest[:_SHORT]}-{re.sub(r'[^A-Za-z0-9._-]', '_', name)[-_LONGEST:]}"


def _hashed(path: Path) -> str:
    try:
        return hash_path(path)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None


def _hash_weights(path: Path) -> str:
    """As `Weights.revision` has it: of the weight file, or of the list of files where there are several."""
    if path.is_file():
        return _hashed(path)
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise BadInput(f"{path}: no .safetensors in this folder; give a model folder or a .gguf file")
    return _hashed(files[0]) if len(files) == 1 else hash_value([[file.name, _hashed(file)] for file in files])
