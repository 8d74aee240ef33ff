"""mlbom.cdx.json: the subject of a case as a CycloneDX 1.6 bill of materials, as far as it is known.

What a maker says of a model is not known here, and is left out: a bill of a model under audit is no model card of its
maker's. Deterministic: the serial number is a hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from spiritsafe.audit._results import Finding
from spiritsafe.ledger import canonical_json

__all__ = ["bill_of_materials"]


def bill_of_materials(plan: Mapping[str, Any], subject: Mapping[str, Any], found: Finding) -> dict[str, Any]:
    """plan: the frozen plan's JSON.  subject: subject.json."""
    serial = hashlib.sha256(canonical_json([plan, subject])).hexdigest()
    known = {key: subject.get(key) for key in ("address", "model", "weights", "revision", "tokenizer_hash", "access")}
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": "subject",
        "name": str(subject.get("name")),
        "properties": [{"name": f"spiritsafe:{key}", "value": str(value)} for key, value in known.items() if value],
    }
    if subject.get("base"):
        component["pedigree"] = {
            "ancestors": [{"type": "machine-learning-model", "name": str(subject["base"])}],
            "notes": "as declared in the plan, not as found",
        }
    limits = "says what was asked and answered, not what the model was trained on"
    component["modelCard"] = {"considerations": {"technicalLimitations": [limits, found.statement]}}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial[:8]}-{serial[8:12]}-5{serial[13:16]}-8{serial[17:20]}-{serial[20:32]}",
        "version": 1,
        "metadata": {
            "tools": {
                "components": [
                    {"type": "application", "name": "spiritsafe", "version": str(plan["code"].get("spiritsafe"))}
                ]
            },
            "component": component,
        },
        "components": [
            {
                "type": "data",
                "bom-ref": name,
                "name": name,
                "hashes": [{"alg": "SHA-256", "content": said["sha256"]}],
            }
            for name, said in sorted(plan["inputs"].items())
        ],
        "properties": [{"name": "spiritsafe:finding", "value": found.grade}],
    }
