#!/usr/bin/env python3
"""Check a case yourself:  python3 verify_case.py CASE.zip [--decoys]        Python 3.11 or later, nothing else.

Standard library only; verify_numbers.py is taken from beside this file, else from the case, where its hash has to be
the one below. No line is shared with the program that made the case. Redone:
  bytes    SHA-256 of every file, against manifest.json
  chain    each line of a transcript carries the hash of the line before it, the first one the hash of the plan
  plan     every planned question has its line, no other was asked, none again after it was answered
  keys     opened keys: hash, Merkle path, root of the commitment that was published (RFC 6962)
  coins    twins and canaries: the ledger's chain of hashes, and each opening against its commitment in it
  numbers  every p-value of twins, canaries and Spiritsafe's own marks; with --decoys (slow) ranks among decoy keys too
It does NOT check signatures or timestamps, nor that the model really gave these answers; what else it did not redo, it
says. Exit status 0: nothing wrong was found.  1: something was.
"""

# fmt: off
# mypy: ignore-errors
# ruff: noqa: E402, I001, SIM905, UP017, B905
import hashlib, hmac, json, math, os, sys, zipfile  # noqa: E401
from datetime import datetime, timezone

NUMBERS = "22f8510c3d9f096756d2c42a4935e95575316a59355bf176ab34c17b3975ec7c"  # SHA-256 of verify_numbers.py
if __name__ == "__main__" and len(sys.argv) < 2:
    sys.exit(__doc__)
if not os.path.exists(os.path.join(os.path.dirname(__file__), "verify_numbers.py")):
    if hashlib.sha256(zipfile.ZipFile(sys.argv[1]).read("verify_numbers.py")).hexdigest() != NUMBERS:
        sys.exit("WRONG: the verify_numbers.py in this case is not the one that belongs to this file")
    sys.path.append(sys.argv[1])
from verify_numbers import canaries_p, fields, marks, near, planned_texts, twins_p

files, wrong, skipped = {}, [], []

def must(holds, check, what):
    if not holds and len(wrong) < 20:
        wrong.append(f"{check}: {what}")
    return holds

def sha256(raw):
    return hashlib.sha256(raw).hexdigest()

def canonical(value):  # the one spelling of a JSON value
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

def parse(raw, **how):
    def once(pairs):
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key is twice in a JSON object")
        return dict(pairs)
    return json.loads(raw, object_pairs_hook=once, **how)

def lines_of(name):
    return [parse(line) for line in files[name].splitlines() if line.strip()]

def read_files(path):
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > 2 << 30 or any(entry.compress_type for entry in entries):
            raise ValueError("too large or compressed, so not a case as it was made")
        for entry in entries:
            must(entry.filename not in files, "bytes", f"{entry.filename} is there twice")
            files[entry.filename] = archive.read(entry)
    listed = parse(files["manifest.json"])["files"]
    for name in sorted({*listed, *files} - {"manifest.json", "attestation.dsse.json"}):
        same = name in files and listed.get(name) == {"sha256": sha256(files[name]), "bytes": len(files[name])}
        must(same, "bytes", f"{name[:99]} is missing, added, or not what the manifest says")

def read_chain(name, prev):
    lines = []
    for number, raw in enumerate(files.get(name, b"").splitlines(keepends=True)):
        line = parse(raw)
        said = line.pop("hash")
        good = canonical(line | {"hash": said}) + b"\n" == raw and sha256(canonical(line)) == said
        if not must(good and (line["n"], line["prev"]) == (number, prev), "chain", f"{name}, line {number + 1}"):
            break
        prev = said
        lines.append(line)
    return lines

def check_asked(where, lines, planned, attempts, may_stop):  # planned: question -> what was to be asked (None: any)
    answered, seen = set(), set()
    for line in lines:
        item = line["item"]
        good = item in planned and planned[item] in (None, line["asked"]) and 1 <= line["attempt"] <= attempts
        must(good, "plan", f"{where}: {item[:60]!r} was not to be asked, or not in this way")
        must(item not in answered, "plan", f"{where}: {item[:60]!r} was answered, and asked again")
        seen.add(item)
        answered |= {item} if line["got"] is not None else set()
    left = len(planned.keys() - seen)
    must(not left or (may_stop and seen), "plan", f"{where}: {left} of {len(planned)} questions have no line")

# ---- keys: the tree of an epoch and scheme has the epoch key, the coin key, then accounts; a root is over all trees
def root_of(key_set, trees):
    parts = [b"spiritsafe-commitment/1", key_set.encode()]
    for tree in trees:
        parts += [str(tree[key]).encode() for key in ("epoch", "scheme", "slots")] + [bytes.fromhex(tree["root"])]
    return sha256(b"\x02" + fields(*parts))

def covered(leaf, commitment):
    slot, purpose = leaf["slot"], leaf["purpose"]
    (tree,) = [t for t in leaf["trees"] if (t["epoch"], t["scheme"]) == (leaf["epoch"], leaf["scheme"])]
    named = purpose.encode(), leaf["scheme"].encode(), leaf["epoch"].encode()
    content = fields(*named, b"" if slot is None else slot.to_bytes(8, "big"), bytes.fromhex(leaf["key"]))
    node = hashlib.sha256(b"\x00" + bytes.fromhex(leaf["salt"]) + content).digest()
    index, last, path = leaf["index"], 1 + tree["slots"], [bytes.fromhex(other) for other in leaf["path"]]
    if not 0 <= index <= last or index != (2 + slot if purpose == "account" else ("epoch", "coin").index(purpose)):
        return False
    while last:
        if index % 2 or index < last:  # it has a neighbour
            other = path.pop(0)
            node = hashlib.sha256(b"\x01" + (other + node if index % 2 else node + other)).digest()
        index, last = index // 2, last // 2
    root = root_of(leaf["key_set"], leaf["trees"])
    return not path and node.hex() == tree["root"] and root == commitment["root"]

def check_keys(test, plan):
    leaves = parse(files["reveal.json"])["leaves"].get(test, [])
    planned = [leaf["sha256"] for leaf in plan["leaves"].get(test, [])]
    must([sha256(canonical(leaf)) for leaf in leaves] == planned, "keys", f"{test}: other keys are opened than planned")
    said = plan["commitments"].get(test, {})
    if "root" in said:
        commitment = parse(files[said["file"]])
        same = said["root"] == commitment["root"] == root_of(commitment["key_set"], commitment["trees"])
        must(same, "keys", f"{test}: the commitment is not what was published and frozen")
        for leaf in leaves:
            must(covered(leaf, commitment), "keys", f"{test}: a key is opened that was never committed to")
        counted = plan["families"][test] == len(commitment["trees"])
        must(counted, "keys", f"{test}: more keys were committed to than the plan counts")
        return leaves, sum(tree["slots"] for tree in commitment["trees"])
    must(not leaves, "keys", f"{test}: a key is opened that was never committed to")
    return [], 0

# ---- coins
Number = type("Number", (str,), {})  # a number as it was spelled: the ledger's hashes are over the spelling

BESIDE = "asn commitments end_user hash ip_prefix kind payment_id prev_hash salt seq usd user_agent".split()

def respell(value):
    if isinstance(value, dict):
        return "{" + ",".join(f"{respell(key)}:{respell(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(respell, value)) + "]"
    return str(value) if isinstance(value, Number) else json.dumps(value, ensure_ascii=False)

def read_ledger(name):
    rows, prev = [], "0" * 64
    for raw in files[name].splitlines():
        row = parse(raw, parse_float=Number, parse_int=Number)
        if row["kind"] == "checkpoint":  # a signature
            continue
        payload = {key: row[key] for key in row if key not in BESIDE}
        payload |= {"personal": row["commitments"]} if row["kind"] == "reply" else {}
        parts = ["spiritsafe-ledger/1", row["seq"], row["kind"], prev, respell(payload)]
        found = sha256(fields(*(part.encode() for part in parts)))
        good = (row["prev_hash"], row["hash"], int(row["seq"])) == (prev, found, len(rows) + 1)
        must(good, "coins", f"row {row['seq']} of the ledger was changed, or rows are missing")
        prev = row["hash"]
        rows.append(row)
    return rows

def in_time(test):
    def moment(text):
        if text.replace(".", "", 1).lstrip("-").isdigit() or text.endswith("inf"):
            return float(text)
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo else time.replace(tzinfo=timezone.utc)).timestamp()
    low, high = moment(test["since"] or "-inf"), moment(test["until"] or "inf")
    return lambda row: low <= float(row["ts"]) < high

def text_of(reply):
    (choice,) = reply["choices"]
    return choice["text"] if "text" in choice else choice["message"]["content"]

def comparable(line):  # can it be asked as text, and are there two texts? Neither depends on the coin
    try:
        prompt, messages = line["request"].get("prompt"), line["request"].get("messages")
        prompt = prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else prompt
        contents = [message.get("content") or "" for message in messages] if messages is not None else [prompt or 0]
        parts = [part["text"] for content in contents if isinstance(content, list) for part in content]
        whole = all(isinstance(one, str) for one in [*parts, *(c for c in contents if not isinstance(c, list))])
        texts = {text_of(line["first"]), text_of(line["second"])}
        return whole and bool(contents) and all(isinstance(one, str) and one for one in texts) and len(texts) == 2
    except (KeyError, TypeError, ValueError):
        return False

def read_twins(test):  # texts and released one of each pair; how many were committed to and not opened
    rows, pairs, opened = read_ledger(test["ledger"]) if test["ledger"] else None, {}, set()
    def named(row):
        return held(row) and test["account"] in (None, row["account"]) and test["model"] in (None, row["model"])
    held = in_time(test)
    for line in lines_of(test["pairs"]):
        row = line | {"ts": line["created"]} if rows is None else rows[line["seq"] - 1]
        parts = [hashlib.sha256(canonical(line[key])).digest() for key in ("first", "second", "request")]
        commit = sha256(fields(b"spiritsafe-twin/1", bytes.fromhex(line["salt"]), bytes([line["coin"]]), *parts))
        good = (row["request_id"], row["twin_commit"]) == (line["request_id"], commit) and commit not in opened
        must(good, "coins", f"the pair of {line['request_id'][:60]} is not what the ledger commits to")
        if good and named(row):
            opened.add(commit)
            if comparable(line):
                pairs[line["request_id"]] = [text_of(line["first"]), text_of(line["second"])], line["coin"]
    committed = [row for row in rows or () if row["kind"] == "reply" and row["twin_commit"] and named(row)]
    return pairs, [2] * (len(committed) - len(opened) if rows is not None else 0)

def read_canaries(test):  # variants and published one of each canary; sizes of those committed to and not opened
    rows, found, held = read_ledger(test["ledger"]) if test["ledger"] else None, {}, in_time(test)
    events = [row for row in rows or () if row["kind"] == "event" and row["name"] == "canary_committed"]
    for line in parse(files[test["canaries"]]) if files[test["canaries"]][:1] == b"[" else lines_of(test["canaries"]):
        salt, at, texts = bytes.fromhex(line["salt"]), line["published"], line["variants"]
        index = [number.to_bytes(4, "big") for number in range(len(texts))]
        salts = [hmac.digest(salt, b"leaf" + i, "sha256") for i in index]
        leaves = [b"\x00" + fields(one, i, text.encode()) for one, i, text in zip(salts, index, texts)]
        choice = b"\x02" + fields(hmac.digest(salt, b"choice", "sha256"), index[at])
        hashes = [hashlib.sha256(raw).digest() for raw in (line["prompt"].encode(), choice, *leaves)]
        commit = sha256(fields(b"spiritsafe-canary/1", line["id"].encode(), *hashes))
        mine = [row for row in events if (row["data"]["canary"], row["data"]["commit"]) == (line["id"], commit)]
        good = (mine or rows is None) and line["id"] not in found and len(set(texts)) == len(texts)
        must(good, "coins", f"canary {line['id'][:60]} is not what the ledger commits to")
        inside = [row for row in mine if held(row)]
        if rows is None or inside:
            found[line["id"]] = texts, at
            events = [row for row in events if not inside or row is not inside[0]]
    return found, [int(row["data"]["variants"]) for row in events if held(row)]

def check_test(where, name, test, plan, lines, result, attempts, may_stop, decoys):
    kind, family = test["kind"], plan["families"][name]
    leaves, slots = check_keys(name, plan)
    asked, answers = {line["item"]: line["asked"] for line in lines}, {line["item"]: line["got"] for line in lines}
    if kind not in ("twins", "canaries", "radioactivity") or test.get("engine"):
        skipped.append(f"{where}: the questions and numbers of {name} ({test.get('engine') or kind})")
        return
    if kind == "radioactivity":
        if "jsonl" not in test["texts"][-5:]:
            skipped.append(f"{where}: whether {name} asked what its file of texts has")
        else:
            check_asked(where, lines, planned_texts(test, files[test["texts"]], asked), attempts, False)
        seed = bytes.fromhex(plan["decoy_seed"]) if decoys else b""
        found = list(marks(test, leaves, asked, answers, seed))
        for (layer, n, log10_p, rank), said in zip(found, result["hypotheses"], strict=True):
            same = (layer, n, rank or said["rank"]) == (said["facts"]["layer"], said["n_scored"], said["rank"])
            good = same and near(log10_p, said["log10_p"])
            must(good, "numbers", f"{where}: log10 p of {said['name']} is {log10_p:.6f} of {n}, rank {rank}")
        if not decoys and result["hypotheses"][0]["rank"]:
            skipped.append(f"{where}: ranks of {name} among decoy keys (give --decoys)")
        best = [one for one in found if one[0] == found[0][0]]
        n, log10_p = min(best, key=lambda one: one[2])[1:3]
        family = max(family if found[0][0] == "epoch" else slots, len(best))
    else:
        known, withheld = (read_twins if kind == "twins" else read_canaries)(test)
        key = "request_id" if kind == "twins" else "id"
        check_asked(where, lines, {item: {key: item} for item in known}, attempts, may_stop)
        if kind == "twins":
            log10_p, n = twins_p(known, len(withheld), answers, may_stop)
        else:
            log10_p, n = canaries_p(known, withheld, answers)
    log10_p = min(0.0, log10_p + math.log10(family))
    good = near(log10_p, result["log10_p"]) and n == result["n_scored"]
    if must(good, "numbers", f"{where}: log10 p of {name} is {log10_p:.6f} of {n}, results.json says otherwise"):
        print(f"{where}: {name}: log10 p = {log10_p:.6f}, as results.json says")

def main(path, decoys):
    read_files(path)
    plan, results, first = parse(files["plan.json"]), parse(files["results.json"]), sha256(files["plan.json"])
    attempts = len(read_chain("attempts.jsonl", first))
    must(results["attempts"] == attempts, "plan", "results.json counts other attempts than attempts.jsonl")
    for name, said in plan["inputs"].items():
        must(sha256(files.get(name, b"")) == said["sha256"], "plan", f"{name} is not what was frozen")
    tests = {test["name"] or test["kind"]: test for test in plan["plan"]["tests"]}
    must([one["test"] for one in results["tests"]] == list(tests), "plan", "results.json has other tests than the plan")
    there = {name.removesuffix(".jsonl") for name in files if name.startswith("controls/")}
    who = {"transcripts": results["tests"]} | {f"controls/{name}": some for name, some in results["controls"].items()}
    must(there == set(who) - {"transcripts"}, "plan", "results.json has other controls than the case")
    for where, outcomes in who.items():
        lines = read_chain(f"{where}.jsonl", first)
        must({line["test"] for line in lines} <= set(tests), "plan", f"{where} has lines of a test that is not planned")
        for place, (name, test) in enumerate(tests.items()):
            mine = [line for line in lines if line["test"] == name]
            result = [one for one in outcomes if one["test"] == name]
            if mine or result:
                may_stop = place == 0 and plan["plan"]["stop"]["rule"] == "e-value"
                check_test(where, name, test, plan, mine, result[0], attempts, may_stop, decoys)
    finding, best = results["finding"], results["tests"][0]["log10_p"]
    rejected = best <= math.log10(plan["plan"]["alpha"])
    fits = finding["log10_p"] == best and rejected == (finding["class"] != "inconclusive")
    must(fits, "numbers", "the finding is not what the numbers say")
    return finding

if __name__ == "__main__":
    try:
        found = main(sys.argv[1], "--decoys" in sys.argv[2:])
    except Exception as error:  # whatever a damaged file leads to
        must(False, "bytes", f"cannot be read to the end ({type(error).__name__}: {str(error)[:200]})")
    skipped += ["signatures, timestamps, and whether the model gave these answers"]
    print(*(f"not checked here: {line}" for line in skipped), *(f"WRONG  {line}" for line in wrong), sep="\n")
    fine = "" if wrong else f"nothing wrong was found\n{found['class']}: {found['statement']}"
    print(fine or "WRONG: do not rely on this case")
    sys.exit(1 if wrong else 0)
