"""A run directory: its layout, its lock, its manifest and the hashes that make a stage resumable."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from spiritsafe.errors import BadInput

__all__ = ["Run", "atomic_file", "atomic_write", "hash_path", "hash_value"]


@dataclass(frozen=True, slots=True)
class Run:
    """Paths of one run. Nothing here creates anything; `open` does."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> Run:
        """Create the directory if need be.

        Raises:
            BadInput: the path is a file or cannot be created.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"{path}: unusable as a run directory ({error.strerror}); choose another --run") from None
        return cls(path)

    @property
    def manifest_file(self) -> Path:
        return self.path / "manifest.json"

    @property
    def requests(self) -> Path:
        return self.path / "requests.sqlite"

    @property
    def exchanges(self) -> Path:
        return self.path / "exchanges.parquet"

    @property
    def curated(self) -> Path:
        return self.path / "curated.parquet"

    @property
    def curation(self) -> Path:
        return self.path / "curation.json"

    @property
    def logits(self) -> Path:
        return self.path / "logits"

    @property
    def student(self) -> Path:
        return self.path / "student"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def train_log(self) -> Path:
        return self.path / "train.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; the kernel drops the lock if the process dies.

        Raises:
            BadInput: another process holds it.
        """
        import fcntl

        with open(self.path / ".lock", "a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = file.read().strip() or "unknown"
                raise BadInput(
                    f"{self.path}: in use by process {owner}; wait for it, or choose another directory with --run"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def manifest(self) -> dict[str, Any]:
        """The manifest as it stands; an empty one for a new run.

        Raises:
            BadInput: the file is damaged.
        """
        try:
            loaded = json.loads(self.manifest_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"schema": "manifest/1", "stages": {}}
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise BadInput(f"{self.manifest_file}: damaged ({error}); restore it or start a new run") from None
        if not isinstance(loaded, dict):
            raise BadInput(f"{self.manifest_file}: damaged (not an object); restore it or start a new run")
        return loaded

    def update_manifest(self, **entries: Any) -> None:
        """Set top-level entries of the manifest, atomically."""
        manifest = self.manifest() | entries
        atomic_write(self.manifest_file, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")

    def record_stage(self, stage: str, fingerprint: str, outputs: Mapping[str, Path], **facts: Any) -> None:
        """Note that `stage` finished for inputs with `fingerprint`, and hash what it wrote."""
        stages = dict(self.manifest().get("stages", {}))
        hashed = {name: {"path": str(p.relative_to(self.path)), "sha256": hash_path(p)} for name, p in outputs.items()}
        stages[stage] = {"fingerprint": fingerprint, "outputs": hashed, **facts}
        self.update_manifest(stages=stages)

    def stage_is_done(self, stage: str, fingerprint: str) -> bool:
        """True if `stage` finished for exactly these inputs and its outputs are still what it wrote."""
        done = self.manifest().get("stages", {}).get(stage)
        if not done or done["fingerprint"] != fingerprint:
            return False
        return all(
            (self.path / output["path"]).exists() and hash_path(self.path / output["path"]) == output["sha256"]
            for output in done["outputs"].values()
        )


@contextlib.contextmanager
def atomic_file(path: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """A temporary file in the same directory, renamed to `path` after an fsync: readers see the old file or the new.

    Nothing appears if the block raises. Until the rename the file has mode 0600, so that a secret (mode=0o600) is
    never readable by others.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def atomic_write(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Write a whole file through `atomic_file`."""
    with atomic_file(path, mode) as file:
        file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)


def hash_path(path: Path) -> str:
    """SHA-256 hex of a file, or of a directory's sorted relative names and file hashes (dot files left out)."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        return hash_value([[str(p.relative_to(path)), hash_path(p)] for p in files])
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def hash_value(value: Any) -> str:
    """SHA-256 hex of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()).hexdigest()
