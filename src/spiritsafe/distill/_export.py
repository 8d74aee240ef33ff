"""What leaves with the student: model card, notices that the terms ask for, and a machine-readable lineage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from spiritsafe import __version__
from spiritsafe.distill._recipe import Recipe
from spiritsafe.runs import Run, atomic_write, hash_path, hash_value
from spiritsafe.terms import TermsRecord, conditions_to_actions

__all__ = ["export"]


def export(run: Run, recipe: Recipe, terms: TermsRecord) -> dict[str, Path]:
    """Write README.md (a Hugging Face model card), notices and mlbom.cdx.json into the student's folder.

    Returns the files written, by a short name.
    """
    actions = conditions_to_actions(terms.decision, recipe.name)
    metrics = json.loads(run.metrics.read_text(encoding="utf-8"))
    manifest = run.manifest()
    written = {"model_card": run.student / "README.md", "mlbom": run.student / "mlbom.cdx.json"}
    for name, content in actions.files.items():
        written[name] = run.student / name
        atomic_write(run.student / name, content)
    card = _environment().get_template("model_card.md.j2")
    facts = {
        "name": actions.student_name,
        "recipe": recipe,
        "metrics": metrics,
        "stages": manifest["stages"],
        "versions": manifest["versions"],
        "terms": terms.to_dict(),
        "actions": actions,
        "version": __version__,
    }
    atomic_write(written["model_card"], card.render(facts))
    atomic_write(written["mlbom"], json.dumps(_mlbom(run, actions.student_name, manifest, terms), indent=2) + "\n")
    return written


def _environment() -> Environment:
    # A model card is Markdown, not HTML; nothing in it comes from prompts or completions.
    return Environment(  # noqa: S701
        loader=PackageLoader("spiritsafe.distill", "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _mlbom(run: Run, name: str, manifest: dict[str, Any], terms: TermsRecord) -> dict[str, Any]:
    """CycloneDX 1.6: the student, its teacher as ancestor, its training set by hash."""
    weights = sorted(run.student.glob("*.safetensors"))
    collected = manifest["stages"].get("collect", {}).get("outputs", {}).get("exchanges", {})
    curated = manifest["stages"].get("curate", {}).get("outputs", {}).get("curated", {})
    teacher = manifest["recipe"]["teacher"]
    serial = hash_value([name, [hash_path(w) for w in weights]])
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial[:8]}-{serial[8:12]}-5{serial[13:16]}-8{serial[17:20]}-{serial[20:32]}",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "spiritsafe", "version": __version__}]},
            "component": {
                "type": "machine-learning-model",
                "bom-ref": "student",
                "name": name,
                "hashes": [{"alg": "SHA-256", "content": hash_path(w)} for w in weights],
                "pedigree": {
                    "ancestors": [{"type": "machine-learning-model", "name": str(teacher["model"] or teacher["path"])}]
                },
                "modelCard": {
                    "modelParameters": {"approach": {"type": "supervised"}, "datasets": [{"ref": "curated"}]}
                },
            },
        },
        "components": [
            {
                "type": "data",
                "bom-ref": ref,
                "name": f"{ref}.parquet",
                "hashes": [{"alg": "SHA-256", "content": output["sha256"]}],
            }
            for ref, output in (("exchanges", collected), ("curated", curated))
            if output
        ],
        "properties": [
            {"name": "spiritsafe:terms", "value": json.dumps(terms.to_dict(), ensure_ascii=False, sort_keys=True)}
        ],
    }
