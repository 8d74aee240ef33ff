#!/usr/bin/env python3
"""Check a case yourself:  python3 verify_case.py CASE.zip        Python 3.11 or later, nothing else.

Standard library only, and no line is shared with the program that made the case. It stops at the first thing wrong:
  bytes    SHA-256 of every file, against manifest.json
  chain    each line of a transcript has the hash of the line before it, the first one the hash of the plan
  plan     every planned question has its line, no other was asked, none again after it was answered
  keys     opened keys: hash, Merkle path (RFC 6962), root of the commitment that was published
  numbers  every p-value of Spiritsafe's own marks, from the recorded token ids, and ranks among decoy keys
  coins    with verify_coins.py beside this file: twins and canaries, from the ledger to their p-values
It does NOT check signatures or timestamps, nor that the model really gave these answers, nor the p-values of equality,
similarity, lineage and the marks of engines. Exit status 0: nothing wrong was found. 1: something was.
"""

# mypy: ignore-errors
# ruff: noqa: E401, E731, I001
import hashlib, hmac, importlib.util, json, math, struct, sys, zipfile
from itertools import chain

files, skipped = {}, ["signatures, timestamps, and whether the model gave these answers"]
WORD = (1 << 64) - 1


def must(holds, what):
    if not holds:
        raise AssertionError(what)


def sha256(raw):
    return hashlib.sha256(raw).digest()


def fields(*parts):  # each behind its length: no two lists of parts give the same bytes
    parts = [part.encode() if isinstance(part, str) else part for part in parts]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def canonical(value):  # the one spelling of a JSON value
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def read_files(path):
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        stored = sum(entry.file_size for entry in entries) < 2 << 30 and not any(e.compress_type for e in entries)
        must(stored, "bytes: compressed or too large, so not a case as it was made")
        files.update((entry.filename, archive.read(entry)) for entry in entries)
    listed = json.loads(files["manifest.json"])["files"]
    found = {name: {"sha256": sha256(raw).hex(), "bytes": len(raw)} for name, raw in files.items()}
    names = {*listed, *found} - {"manifest.json", "attestation.dsse.json"}
    other = sorted(name[:99] for name in names if listed.get(name) != found.get(name))
    must(not other and len(files) == len(entries), f"bytes: missing, added, twice, or not as in the manifest: {other}")


def read_chain(name, prev):
    lines = []
    for number, raw in enumerate(files.get(name, b"").splitlines(keepends=True)):
        line = json.loads(raw)
        good = canonical(line) + b"\n" == raw and (line["n"], line["prev"]) == (number, prev)
        prev = line.pop("hash")
        must(good and sha256(canonical(line)).hex() == prev, f"chain: {name}, line {number + 1}")
        lines.append(line)
    return lines


def check_asked(where, lines, planned, attempts, may_stop):  # planned: question -> what is asked
    answered = set()
    for line in lines:
        item, good = line["item"], 1 <= line["attempt"] <= attempts and planned.get(line["item"]) == line["asked"]
        must(good, f"plan: {where}: {item[:60]!r} was not to be asked, or not in this way")
        must(item not in answered, f"plan: {where}: {item[:60]!r} was answered, and asked again")
        answered |= {item} if line["got"] is not None else set()
    left = len(planned.keys() - {line["item"] for line in lines})
    must(not left or (may_stop and lines), f"plan: {where}: {left} of {len(planned)} questions have no line")


# ---- keys: the tree of an epoch and scheme has the epoch key, the coin key, then accounts; a root is over all trees
def root_above(leaf, slots):
    slot, purpose, path, last = leaf["slot"], leaf["purpose"], list(leaf["path"]), 1 + slots
    index = 2 + slot if purpose == "account" else ("epoch", "coin").index(purpose)
    number = b"" if slot is None else slot.to_bytes(8, "big")
    content = fields(purpose, leaf["scheme"], leaf["epoch"], number, bytes.fromhex(leaf["key"]))
    node, inside = sha256(b"\x00" + bytes.fromhex(leaf["salt"]) + content), leaf["index"] == index <= last
    while last:
        if index % 2 or index < last:  # it has a neighbour
            other = bytes.fromhex(path.pop(0)) if path else b""
            node = sha256(b"\x01" + (other + node if index % 2 else node + other))
        index, last = index // 2, last // 2
    return node.hex() if inside and not path else None


def check_keys(test, plan):
    leaves, said = json.loads(files["reveal.json"])["leaves"].get(test, []), plan["commitments"].get(test, {})
    opened, planned = [sha256(canonical(leaf)).hex() for leaf in leaves], plan["leaves"].get(test, [])
    must(opened == [one["sha256"] for one in planned], f"keys: {test}: other keys are opened than planned")
    if "root" not in said:
        must(not leaves, f"keys: {test}: a key is opened that was never committed to")
        return [], 0
    commitment = json.loads(files[said["file"]])
    trees = {(tree["epoch"], tree["scheme"]): tree for tree in commitment["trees"]}
    parts = [(*named, str(tree["slots"]), bytes.fromhex(tree["root"])) for named, tree in trees.items()]
    root = sha256(b"\x02" + fields("spiritsafe-commitment/1", commitment["key_set"], *chain(*parts))).hex()
    must(said["root"] == commitment["root"] == root, f"keys: {test}: not the commitment that was published and frozen")
    for leaf in leaves:
        tree = trees.get((leaf["epoch"], leaf["scheme"]))
        good = tree and leaf["key_set"] == commitment["key_set"] and root_above(leaf, tree["slots"]) == tree["root"]
        must(good, f"keys: {test}: a key is opened that was never committed to")
    must(plan["families"][test] == len(trees), f"keys: {test}: more keys were committed to than the plan counts")
    return leaves, sum(tree["slots"] for tree in trees.values())


# ---- marks: each pair of a context (k tokens) and a token has a value that only the key knows
def lanes(keys):  # to reckon with all keys at once: each has 128 bits of every number, and uses the lower 64
    k0, k1 = (int.from_bytes(b"".join(key[i : i + 8] + bytes(8) for key in keys), "little") for i in (0, 8))
    return int.from_bytes((b"\x01" + bytes(15)) * len(keys), "little"), k0, k1


def siphash(under, tokens):  # SipHash-2-4 of tokens as little-endian 32-bit words
    each, k0, k1 = under
    turn, word = lambda x, bits: (x << bits | x >> 64 - bits) & word, each * WORD
    raw = struct.pack(f"<{len(tokens)}I", *tokens)
    raw += bytes(7 - len(raw) % 8) + bytes([len(raw) % 256])
    a, b = k0 ^ 0x736F6D6570736575 * each, k1 ^ 0x646F72616E646F6D * each
    c, d = k0 ^ 0x6C7967656E657261 * each, k1 ^ 0x7465646279746573 * each
    for m in (*struct.unpack(f"<{len(raw) // 8}Q", raw), None):
        c, d = c ^ (0xFF if m is None else 0) * each, d ^ (m or 0) * each
        for _ in range(4 if m is None else 2):
            a, c = a + b & word, c + d & word
            b, d = turn(b, 13) ^ a, turn(d, 16) ^ c
            a, c = turn(a, 32) + d & word, c + b & word
            b, c, d = turn(b, 17) ^ c, turn(c, 32), turn(d, 21) ^ a
        a ^= (m or 0) * each
    return a ^ b ^ c ^ d


def values(under, context, token):
    each, word = under[0], under[0] * WORD
    z = siphash(under, context) + ((token + 1) * 0x9E3779B97F4A7C15 & WORD) * each & word
    z = ((z ^ z >> 30) & word) * 0xBF58476D1CE4E5B9 & word
    z = ((z ^ z >> 27) & word) * 0x94D049BB133111EB & word
    raw = ((z ^ z >> 31) & word).to_bytes((word.bit_length() + 64) // 8, "little")
    return struct.unpack(f"<{len(raw) // 8}Q", raw)[::2]


def score(scheme, mark, z):
    if scheme == "kgw":
        return float(z >> 12 < math.ceil(mark["gamma"] * 2.0**52 - 0.5))
    if scheme == "gumbel-dual":
        return -math.log(1 - ((z >> 12) + 0.5) / 2**52)
    return float((z >> 64 - mark["depth"]).bit_count())


def mark_p(scheme, mark, n, total, fixed):
    """log10 p of a sum of n scores. fixed: n does not depend on the key; else 1 / what a fair bettor would have won."""
    q, trials = {"kgw": (mark["gamma"], n), "synthid": (0.5, n * mark["depth"])}.get(scheme, (None, n))
    if not fixed:
        growth = (lambda x: -math.log1p(-x)) if q is None else (lambda x: trials / n * math.log1p(q * math.expm1(x)))
        tilts = [{"kgw": 4.0, "synthid": 1.0}.get(scheme, 0.875) * 2 ** (-j / 2) for j in range(16)]
        logs = [x * total - n * growth(x) - math.log(16) for x in tilts] if n else [0.0]
    elif q is None:  # a sum of n exponentials
        logs = [j * math.log(total) - total - math.lgamma(j + 1) for j in range(n)] or [0.0]
    else:  # binomial
        ways = lambda i: math.lgamma(trials + 1) - math.lgamma(i + 1) - math.lgamma(trials - i + 1)
        logs = [ways(i) + i * math.log(q) + (trials - i) * math.log1p(-q) for i in range(round(total), trials + 1)]
    log10 = (max(logs) + math.log(math.fsum(math.exp(one - max(logs)) for one in logs))) / math.log(10)
    return min(0.0, log10 if fixed else -log10)


def read_marks(test, k, asked, answers):
    """(context of k tokens, token) of all answers, as far as they count, each once. asked, answers: by question."""
    reading, found, earliest, known = test["mode"] == "reading", [], {}, None
    contexts = lambda ids, start: [(t - start, tuple(ids[t - k : t])) for t in range(max(start, k), len(ids))]
    if test["supervised"] and not reading:
        marked = [contexts(one["prompt_ids"] + one["marked_ids"], len(one["prompt_ids"])) for one in asked.values()]
        known = {context for _, context in chain(*marked)}
    for item in sorted((item for item, got in answers.items() if got is not None), key=int):
        one, got = asked[item], answers[item]
        first = one["first"] if reading else len(one["prompt_ids"])
        ids, said = (one["ids"], got["argmax"]) if reading else (one["prompt_ids"] + got["ids"], got["ids"])
        prompt = {context for _, context in contexts(ids[:first], 0)}
        for place, context in contexts(ids, first):
            earliest[context] = min(place, earliest.get(context, place))
            if context not in prompt and (known is None or context in known):
                found.append((context, said[place], place))
    # a prediction counts where no marked text had come to its context before: nothing that used its coins led there
    return list(dict.fromkeys(one[:2] for one in found if not reading or one[2] == earliest[one[0]]))


def planned_texts(test, asked):  # from the frozen file; texts without token ids are taken as they were asked
    reading, planned, count = test["mode"] == "reading", {}, 0
    for number, raw in enumerate(files[test["texts"]].splitlines(), 1):
        row, one = json.loads(raw.strip() or b"{}"), asked.get(str(number))
        row = row["request"] if "twin_commit" in row else row
        given = row.get("messages") if row.get("prompt") is None else row["prompt"]
        quoting = isinstance(given, list) and any(turn["role"] == "assistant" for turn in given)
        count += bool(row) and not quoting
        if row and not quoting and count <= (test["max_texts"] or count):
            ids = row.get("token_ids") if row.get("tokens") is None else row["tokens"]
            if one is not None:  # a text without a prompt is read from its second token on
                there = one["ids"][one["first"] :] if reading else one.get("marked_ids", ids)
                planned[str(number)] = one if ids is None or there in (ids, ids[reading:]) else None
            elif ids and (given or (reading and row.get("prompt_tokens"))):
                planned[str(number)] = None
    return planned


def must_agree(where, name, log10_p, n, said):
    good = math.isclose(log10_p, said["log10_p"], rel_tol=1e-7, abs_tol=1e-9) and n == said["n_scored"]
    must(good, f"numbers: {where}: log10 p of {name} is {log10_p:.6f} of {n}, results.json says otherwise")


def redo_marks(where, test, plan, keys, asked, answers, said):
    """(log10 p, n, family) of the outcome, once all that is said of each opened key is so."""
    (leaves, slots), prk = keys, hmac.digest(b"spiritsafe/decoys", bytes.fromhex(plan["decoy_seed"]), "sha256")
    mark = {"context_width": 2, "account_share": 0.5, "gamma": 0.25, "depth": 30} | (test["marking"] or {})
    every, share = read_marks(test, mark["context_width"], asked, answers), round(mark["account_share"] * 2**53)
    fixed, of_kind, found = test["mode"] == "completions" and not test["supervised"], {}, []
    for leaf in leaves:
        of_kind.setdefault((leaf["purpose"], leaf["epoch"], leaf["scheme"]), []).append(bytes.fromhex(leaf["key"]))
    for layer, epoch, scheme in [one for name in ("epoch", "account") for one in of_kind if one[0] == name]:
        opened, coin = of_kind[layer, epoch, scheme], lanes(of_kind.get(("coin", epoch, scheme), [bytes(16)]))
        pairs = [one for one in every if (siphash(coin, one[0]) >> 11 < share) == (layer == "account")]
        infos = [fields("1", "decoy", f"epoch/{scheme}/{epoch}", i.to_bytes(8, "big")) for i in range(test["decoys"])]
        decoys = [hmac.digest(prk, info + b"\x01", "sha256")[:16] for info in infos if layer == "epoch"]
        under, sums = lanes(opened + decoys), [0.0] * len(opened + decoys)
        for context, token in pairs:
            sums = [sum_ + score(scheme, mark, z) for sum_, z in zip(sums, values(under, context, token), strict=True)]
        for total in sums[: len(opened)]:
            rank = [sum(other >= total for other in sums[len(opened) :]), len(decoys)] if decoys else None
            found.append((mark_p(scheme, mark, len(pairs), total, fixed), len(pairs), layer, rank))
    for (log10_p, n, layer, rank), one in zip(found, said["hypotheses"], strict=True):
        must_agree(where, one["name"], log10_p, n, one)
        must((layer, rank) == (one["facts"]["layer"], one["rank"]), f"numbers: {where}: {one['name']}: rank {rank}")
    best = [one for one in found if one[2] == found[0][2]]
    log10_p, n, layer, _ = min(best, key=lambda one: one[0])
    return log10_p, n, max(plan["families"][said["test"]] if layer == "epoch" else slots, len(best))


def check_test(where, test, plan, keys, lines, said, attempts, coins):
    name, kind = said["test"], test.get("engine") or test["kind"]
    planned, answers = ({line["item"]: line[what] for line in lines} for what in ("asked", "got"))
    may_stop = plan["plan"]["stop"]["rule"] == "e-value" and test == plan["plan"]["tests"][0] and kind == "twins"
    if kind in ("twins", "canaries") and coins:
        planned, *evidence = coins.read(test)
    elif kind != "radioactivity":
        skipped.append(f"{where}: the questions and numbers of {name} ({kind})")
        return
    elif test["texts"].endswith((".parquet", ".pq")):
        skipped.append(f"{where}: whether {name} asked what its file of texts has")
    else:
        planned = planned_texts(test, planned)
    check_asked(where, lines, planned, attempts, may_stop)
    if kind == "radioactivity":
        log10_p, n, family = redo_marks(where, test, plan, keys, planned, answers, said)
    else:
        (log10_p, n), family = coins.p_of(kind, *evidence, answers, may_stop), plan["families"][name]
    log10_p = min(0.0, log10_p + math.log10(family))
    must_agree(where, name, log10_p, n, said)
    print(f"{where}: {name}: log10 p = {log10_p:.6f}, as results.json says")


def main(path, coins):
    read_files(path)
    plan, results = (json.loads(files[name]) for name in ("plan.json", "results.json"))
    first, best = sha256(files["plan.json"]).hex(), results["tests"][0]["log10_p"]
    attempts = len(read_chain("attempts.jsonl", first))
    must(results["attempts"] == attempts, "plan: results.json counts other attempts than attempts.jsonl")
    for name, said in plan["inputs"].items():
        must(sha256(files.get(name, b"")).hex() == said["sha256"], f"plan: {name} is not what was frozen")
    tests = {test["name"] or test["kind"]: test for test in plan["plan"]["tests"]}
    must([one["test"] for one in results["tests"]] == list(tests), "plan: results.json has other tests than the plan")
    keys = {name: check_keys(name, plan) for name in tests}
    who = {"transcripts": results["tests"]} | {f"controls/{name}": some for name, some in results["controls"].items()}
    there = {name.removesuffix(".jsonl") for name in files if name.startswith("controls/")}
    must(there | {"transcripts"} == set(who), "plan: results.json has other controls than the case")
    for where, outcomes in who.items():
        lines, outcomes = read_chain(f"{where}.jsonl", first), {one["test"]: one for one in outcomes}
        must({line["test"] for line in lines} <= set(tests), f"plan: {where} has lines of a test that is not planned")
        for name, test in tests.items():
            mine = [line for line in lines if line["test"] == name]
            if mine or name in outcomes:
                check_test(where, test, plan, keys[name], mine, outcomes[name], attempts, coins)
    finding, rejected = results["finding"], best <= math.log10(plan["plan"]["alpha"])
    fits = finding["log10_p"] == best and rejected == (finding["class"] != "inconclusive")
    must(fits, "numbers: the finding is not what the numbers say")
    return f"nothing wrong was found\n{finding['class']}: {finding['statement']}"


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.modules["verify_case"] = sys.modules["__main__"]  # from which verify_coins imports
    try:
        coins = importlib.import_module("verify_coins") if importlib.util.find_spec("verify_coins") else None
        status, said = 0, main(sys.argv[1], coins)
    except Exception as error:  # what must hold does not; or whatever a damaged file leads to
        damaged = "" if isinstance(error, AssertionError) else f"bytes: cannot be read ({type(error).__name__}): "
        status, said = 1, f"WRONG  {damaged}{str(error)[:300]}"
    print(*(f"not checked here: {line}" for line in skipped), said, sep="\n")
    sys.exit(status)
