"""Twins and canaries of a case, for verify_case.py: the ledger, what it commits to, and their p-values.

Given two replies, which one was released was a fair coin; which of N answers was published was drawn. A model that does
not depend on coin or draw agrees with it by chance alone, and how often chance does as well is counted here.
"""

# mypy: ignore-errors
# ruff: noqa: E401, E731, I001, SIM905
import hmac, json, math
from collections import Counter
from datetime import UTC, datetime
from fractions import Fraction
from functools import reduce
from operator import add

from verify_case import canonical, fields, files, must, sha256

BESIDE = "asn commitments end_user hash ip_prefix kind payment_id prev_hash salt seq usd user_agent".split()


class Number(str):  # as it was spelled: the ledger's hashes are over the spelling
    pass


def lines_of(name):
    return [json.loads(line) for line in files[name].splitlines() if line.strip()]


def respell(value):
    if isinstance(value, dict):
        return "{" + ",".join(f"{respell(key)}:{respell(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(respell, value)) + "]"
    return str(value) if isinstance(value, Number) else json.dumps(value, ensure_ascii=False)


def read_ledger(name):
    rows, prev = [], "0" * 64
    for raw in files[name].splitlines():
        row = json.loads(raw, parse_float=Number, parse_int=Number)
        if row["kind"] != "checkpoint":  # a signature
            payload = {key: row[key] for key in row if key not in BESIDE}
            payload |= {"personal": row["commitments"]} if row["kind"] == "reply" else {}
            found = sha256(fields("spiritsafe-ledger/1", row["seq"], row["kind"], prev, respell(payload))).hex()
            good = (row["prev_hash"], row["hash"], int(row["seq"])) == (prev, found, len(rows) + 1)
            must(good, f"coins: row {row['seq']} of the ledger was changed, or rows are missing")
            prev = found
            rows.append(row)
    return rows


def moment(text):
    try:
        return float(text)
    except ValueError:
        time = datetime.fromisoformat(text)
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def naming(test):  # does the plan name this row?
    low, high = moment(test["since"] or "-inf"), moment(test["until"] or "inf")
    words = [(key, test[key]) for key in ("account", "model") if test.get(key) is not None]
    return lambda row: low <= float(row["ts"]) < high and all(row[key] == word for key, word in words)


def text_of(reply):
    (choice,) = reply["choices"]
    return choice["text"] if "text" in choice else choice["message"]["content"]


def comparable(line):  # can it be asked as text, and are there two texts? Neither depends on the coin
    try:
        prompt, messages = line["request"].get("prompt"), line["request"].get("messages")
        prompt = prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else prompt
        contents = [message.get("content") or "" for message in messages] if messages is not None else [prompt or 0]
        parts = [part["text"] for content in contents if isinstance(content, list) for part in content]
        parts += [content for content in contents if not isinstance(content, list)]
        texts = text_of(line["first"]), text_of(line["second"])
        whole = all(isinstance(one, str) for one in [*parts, *texts])
        return whole and bool(contents) and all(texts) and texts[0] != texts[1]
    except (KeyError, TypeError, ValueError):
        return False


def read_twins(test):  # texts and released one of each pair; sizes of those committed to and not opened
    rows, named, pairs, opened = read_ledger(test["ledger"]) if test["ledger"] else None, naming(test), {}, set()
    for line in lines_of(test["pairs"]):
        row = line | {"ts": line["created"]} if rows is None else rows[line["seq"] - 1]
        parts = [sha256(canonical(line[key])) for key in ("first", "second", "request")]
        commit = sha256(fields("spiritsafe-twin/1", bytes.fromhex(line["salt"]), bytes([line["coin"]]), *parts)).hex()
        good = (row["request_id"], row["twin_commit"]) == (line["request_id"], commit) and commit not in opened
        must(good, f"coins: the pair of {line['request_id'][:60]} is not what the ledger commits to")
        opened.add(commit)
        if named(row) and comparable(line):
            pairs[line["request_id"]] = [text_of(line["first"]), text_of(line["second"])], line["coin"]
    committed = [row["twin_commit"] for row in rows or () if row["kind"] == "reply" and named(row)]
    return pairs, [2 for commit in committed if commit and commit not in opened]


def read_canaries(test):  # variants and published one of each canary; sizes of those committed to and not opened
    rows, named, found = read_ledger(test["ledger"]) if test["ledger"] else None, naming(test), {}
    events = [row for row in rows or () if row["kind"] == "event" and row["name"] == "canary_committed"]
    for line in (
        json.loads(files[test["canaries"]]) if files[test["canaries"]][:1] == b"[" else lines_of(test["canaries"])
    ):
        salt, at, texts = bytes.fromhex(line["salt"]), line["published"], line["variants"]
        index = [number.to_bytes(4, "big") for number in range(len(texts))]
        leaves = [
            sha256(b"\x00" + fields(hmac.digest(salt, b"leaf" + i, "sha256"), i, text))
            for i, text in zip(index, texts, strict=True)
        ]
        choice = sha256(b"\x02" + fields(hmac.digest(salt, b"choice", "sha256"), index[at]))
        commit = sha256(
            fields("spiritsafe-canary/1", line["id"], sha256(line["prompt"].encode()), choice, *leaves)
        ).hex()
        mine = [row for row in events if (row["data"]["canary"], row["data"]["commit"]) == (line["id"], commit)]
        good = (mine or rows is None) and line["id"] not in found and len(set(texts)) == len(texts)
        must(good, f"coins: canary {line['id'][:60]} is not what the ledger commits to")
        inside = [row for row in mine if named(row)]
        if rows is None or inside:
            found[line["id"]] = texts, at
            events = [row for row in events if not inside or row is not inside[0]]
    return found, [int(row["data"]["variants"]) for row in events if named(row)]


def log10(exact):
    return math.log10(exact.numerator) - math.log10(exact.denominator)


def scores(got, texts):  # of each text: its mean log-probability a token, or how much the suspect's replies resemble it
    if "replies" in got:
        return [reduce(add, (alike(reply, text) for reply in got["replies"]), 0.0) for text in texts]  # in their order
    given = got["logprobs"] if "logprobs" in got else [got["first"], got["second"]]
    must(len(given) == len(texts), "bytes: an answer of another form")
    return [-math.inf if total is None or not tokens else total / tokens for total, tokens in given]


def alike(one, other):  # chrF with beta = 1: F1 of the n-grams of characters, n = 1 to 6
    one, other, total = " ".join(one.split()), " ".join(other.split()), 0.0
    for n in range(1, 7):
        a, b = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (one, other))
        total += 2.0 * (a & b).total() / (a.total() + b.total()) if a or b else 0.0
    return total / 6


def twins_p(scored, withheld, stopped):
    wins, judged = sum(s[at] > s[1 - at] for s, at in scored), sum(s[0] != s[1] for s, _ in scored)
    n = judged + withheld  # what is not opened counts as lost
    if not stopped:
        return log10(Fraction(sum(math.comb(n, i) for i in range(wins, n + 1)), 2**n)), judged
    won = Fraction(sum(math.comb(n + 1, j) for j in range(wins + 1)), (n + 1) * math.comb(n, wins))
    return min(0.0, -log10(won)), judged  # 1 / what a fair bettor would have won, whenever one stops


def canaries_p(scored, withheld):  # of all outcomes of fair draws, the share that is worth as many decibans
    worth = lambda rank, size: len(str(size**10 // rank**10)) - 1
    ranks = [(sum(score >= s[at] for score in s), len(s)) for s, at in scored] + [(size, size) for size in withheld]
    every = math.prod(size for _, size in ranks)
    digit, law = every.bit_length() + 1, 1  # digit d of law, in base 2**digit: how many outcomes are worth d
    for _, size in ranks:
        each = Counter(worth(rank, size) for rank in range(1, size + 1))
        law *= sum(times << digit * more for more, times in each.items())
    reached = (law >> digit * sum(worth(*one) for one in ranks)) % ((1 << digit) - 1)  # the sum of these digits
    return log10(Fraction(reached, every)), len(scored)


def read(test):
    """(what is to be asked, texts and the one that went out by item, sizes of what is committed to and not opened)."""
    known, withheld = read_twins(test) if test["kind"] == "twins" else read_canaries(test)
    key = "request_id" if test["kind"] == "twins" else "id"
    return {item: {key: item} for item in known}, known, withheld


def p_of(kind, known, withheld, answers, may_stop):
    """(log10 p, how many were judged).  known, withheld: as `read` gives them; answers: by item."""
    scored = [(scores(got, known[item][0]), known[item][1]) for item, got in answers.items() if got is not None]
    unasked = [len(texts) for item, (texts, _) in known.items() if item not in answers]
    if kind == "twins":
        return twins_p(scored, len(withheld), may_stop or unasked)
    return canaries_p(scored, withheld + unasked)
