"""Every p-value that verify_case.py redoes, from what was recorded. Standard library only.

Twins: given two replies, which one was released was a fair coin. Canaries: which of N answers was published was drawn.
Marks: each pair of a context (k tokens) and a token has a value that only the key knows. A model that does not depend
on coins, draw or key agrees with them by chance alone, and how often chance does as well is counted here.
"""

# fmt: off
# mypy: ignore-errors
# ruff: noqa: B023, I001
import hmac, json, math  # noqa: E401
from collections import Counter
from fractions import Fraction
from functools import cache, reduce
from operator import add

def fields(*parts):  # each behind its length: no two lists of parts give the same bytes
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)

def scores(got, texts):  # of each text: its mean log-probability a token, or how much the suspect's replies resemble it
    if "replies" in got:
        return [reduce(add, (alike(reply, text) for reply in got["replies"]), 0.0) for text in texts]  # in their order
    given = got["logprobs"] if "logprobs" in got else [got["first"], got["second"]]
    if len(given) != len(texts):
        raise ValueError("an answer of another form")
    return [-math.inf if total is None or not tokens else total / tokens for total, tokens in given]

def alike(one, other):  # chrF with beta = 1: F1 of the n-grams of characters, n = 1 to 6
    one, other, total = " ".join(one.split()), " ".join(other.split()), 0.0
    for n in range(1, 7):
        a, b = (Counter(text[i:i + n] for i in range(len(text) - n + 1)) for text in (one, other))
        total += 2.0 * (a & b).total() / (a.total() + b.total()) if a or b else 0.0
    return total / 6

def near(one, other):
    return math.isclose(one, other, rel_tol=1e-7, abs_tol=1e-9)

def log10(exact):
    return math.log10(exact.numerator) - math.log10(exact.denominator)

def twins_p(pairs, withheld, answers, sequential):
    answered = {item: got for item, got in answers.items() if got is not None}
    each = [(scores(answered[item], texts), coin) for item, (texts, coin) in pairs.items() if item in answered]
    wins, judged = sum(s[coin] > s[1 - coin] for s, coin in each), sum(s[0] != s[1] for s, _ in each)
    n = judged + withheld  # what is not opened counts as lost
    if sequential or pairs.keys() - answers.keys():  # stopped early: 1 / what a fair bettor would have won
        e = Fraction(sum(math.comb(n + 1, j) for j in range(wins + 1)), (n + 1) * math.comb(n, wins))
        return min(0.0, -log10(e)), judged
    return log10(Fraction(sum(math.comb(n, i) for i in range(wins, n + 1)), 2**n)), judged

def canaries_p(canaries, withheld, answers):  # of all outcomes of fair draws, the share that is worth as many decibans
    worth = lambda rank, size: len(str(size**10 // rank**10)) - 1  # noqa: E731
    answered = {item: got for item, got in answers.items() if got is not None}
    asked = [(scores(answered[item], texts), at) for item, (texts, at) in canaries.items() if item in answered]
    last = [len(texts) for item, (texts, _) in canaries.items() if item not in answers] + withheld
    ranks = [(sum(score >= s[at] for score in s), len(s)) for s, at in asked] + [(size, size) for size in last]
    law = Counter({0: 1})
    for _, size in ranks:
        law, before = Counter(), law
        for more, times in Counter(worth(rank, size) for rank in range(1, size + 1)).items():
            for total, ways in before.items():
                law[total + more] += ways * times
    seen = sum(worth(*one) for one in ranks)
    reached = sum(ways for total, ways in law.items() if total >= seen)
    return log10(Fraction(reached, math.prod(size for _, size in ranks))), len(asked)

# ---- marks
WORD = (1 << 64) - 1

def siphash(key, tokens):  # SipHash-2-4 of tokens as little-endian 32-bit words
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]
    raw = b"".join(token.to_bytes(4, "little") for token in tokens)
    padded = raw + bytes(7 - len(raw) % 8) + bytes([len(raw) % 256])
    turn = lambda x, b: (x << b | x >> 64 - b) & WORD  # noqa: E731
    for m in [int.from_bytes(padded[i:i + 8], "little") for i in range(0, len(padded), 8)] + [None]:
        v[3] ^= m or 0
        v[2] ^= 0xFF if m is None else 0
        for _ in range(4 if m is None else 2):
            a, b = v[0] + v[1] & WORD, v[2] + v[3] & WORD
            c, d = turn(v[1], 13) ^ a, turn(v[3], 16) ^ b
            a, b = turn(a, 32) + d & WORD, b + c & WORD
            v = [a, turn(c, 17) ^ b, turn(b, 32), turn(d, 21) ^ a]
        v[0] ^= m or 0
    return v[0] ^ v[1] ^ v[2] ^ v[3]

def value(key, context, token):
    z = siphash(key, context) + (token + 1) * 0x9E3779B97F4A7C15 & WORD
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB & WORD
    return z ^ z >> 31

def score(scheme, mark, z):
    if scheme == "kgw":
        return float(z >> 12 < math.ceil(mark["gamma"] * 2.0**52 - 0.5))
    if scheme == "gumbel-dual":
        return -math.log(1 - ((z >> 12) + 0.5) / 2**52)
    return float((z >> 64 - mark["depth"]).bit_count())

def log10_sum(logs):
    return (max(logs) + math.log(math.fsum(math.exp(one - max(logs)) for one in logs))) / math.log(10)

def mark_p(scheme, mark, n, total, fixed):
    """log10 p of a sum of n scores. fixed: n does not depend on the key; else 1 / what a fair bettor would have won."""
    q, trials = {"kgw": (mark["gamma"], n), "synthid": (0.5, n * mark["depth"])}.get(scheme, (None, n))
    if not n:
        return 0.0
    if fixed and q is None:  # a sum of n exponentials
        return min(0.0, log10_sum([j * math.log(total) - total - math.lgamma(j + 1) for j in range(n)]))
    if fixed:  # binomial
        ways = lambda i: math.lgamma(trials + 1) - math.lgamma(i + 1) - math.lgamma(trials - i + 1)  # noqa: E731
        each = (ways(i) + i * math.log(q) + (trials - i) * math.log1p(-q) for i in range(round(total), trials + 1))
        return min(0.0, log10_sum(list(each)))
    growth = (lambda x: -math.log1p(-x)) if q is None else (lambda x: trials / n * math.log1p(q * math.expm1(x)))
    tilts = [{"kgw": 4.0, "synthid": 1.0}.get(scheme, 0.875) * 2 ** (-j / 2) for j in range(16)]
    return min(0.0, -log10_sum([x * total - n * growth(x) - math.log(16) for x in tilts]))

def read_marks(test, k, asked, answers):
    """(context of k tokens, token) of all answers, as far as they count, each once. asked, answers: by question."""
    reading, found, known, earliest = test["mode"] == "reading", [], set(), {}
    def places(ids, start):
        return [(tuple(ids[t - k:t]), ids[t]) for t in range(max(start, k), len(ids))]
    for one in asked.values() if test["supervised"] and not reading else ():
        known |= {context for context, _ in places(one["prompt_ids"] + one["marked_ids"], len(one["prompt_ids"]))}
    for item in sorted((item for item, got in answers.items() if got is not None), key=int):
        one, got = asked[item], answers[item]
        first = one["first"] if reading else len(one["prompt_ids"])
        ids, said = (one["ids"], got["argmax"]) if reading else (one["prompt_ids"] + got["ids"], got["ids"])
        prompt = {context for context, _ in places(ids[:first], 0)}
        for place, (context, _) in enumerate(places(ids, first), max(first, k) - first):
            earliest[context] = min(place, earliest.get(context, place))
            if context not in prompt and (reading or not test["supervised"] or context in known):
                found.append((context, said[place], place))
    # a prediction counts where no marked text had come to its context before: nothing that used its coins led there
    return list(dict.fromkeys(one[:2] for one in found if not reading or one[2] == earliest[one[0]]))

def marks(test, leaves, asked, answers, decoys):
    """(name of the layer, n, log10 p, rank or None) for each opened key, epochs first."""
    mark = {"context_width": 2, "account_share": 0.5, "gamma": 0.25, "depth": 30} | (test["marking"] or {})
    every = read_marks(test, mark["context_width"], asked, answers)
    opened = [leaf for leaf in leaves if leaf["purpose"] == "coin"]
    coins = {(leaf["epoch"], leaf["scheme"]): bytes.fromhex(leaf["key"]) for leaf in opened}
    @cache
    def accounts(coin, context):
        return siphash(coin, context) >> 11 < round(mark["account_share"] * 2**53)
    for layer in ("epoch", "account"):
        for leaf in (leaf for leaf in leaves if leaf["purpose"] == layer):
            scheme, coin = leaf["scheme"], coins.get((leaf["epoch"], leaf["scheme"]), bytes(16))
            pairs = [pair for pair in every if accounts(coin, pair[0]) == (layer == "account")]
            def total(key):
                return math.fsum(score(scheme, mark, value(key, *pair)) for pair in pairs)
            found, rank = total(bytes.fromhex(leaf["key"])), None
            if decoys and layer == "epoch":
                prk = hmac.digest(b"spiritsafe/decoys", decoys, "sha256")
                named = b"1", b"decoy", f"epoch/{scheme}/{leaf['epoch']}".encode()
                info = [fields(*named, i.to_bytes(8, "big")) + b"\x01" for i in range(test["decoys"])]
                rank = [sum(total(hmac.digest(prk, one, "sha256")[:16]) >= found for one in info), len(info)]
            fixed = test["mode"] == "completions" and not test["supervised"]
            yield layer, len(pairs), mark_p(scheme, mark, len(pairs), found, fixed), rank

def planned_texts(test, raw_texts, asked):
    """As in a frozen JSONL file; questions whose ids are not those of the file come out as not to be asked."""
    reading, found, count = test["mode"] == "reading", {}, 0
    for number, raw in enumerate(raw_texts.splitlines(), 1):
        row = json.loads(raw) if raw.strip() else {}
        given = row.get("prompt") if row.get("prompt") is not None else row.get("messages")
        quoting = isinstance(given, list) and any(turn["role"] == "assistant" for turn in given)
        if not raw.strip() or quoting:
            continue
        count, one = count + 1, asked.get(str(number))
        if count > (test["max_texts"] or math.inf):
            break
        ids = row.get("tokens") if row.get("tokens") is not None else row.get("token_ids")
        if one is not None:
            there = one["ids"][one["first"]:] if reading else one.get("marked_ids", ids)
            whole = ids[-len(there):] if reading and ids else ids  # without a prompt, the first token is one
            found[str(number)] = one if ids is None or there == whole else False
        elif ids and (given or (reading and row.get("prompt_tokens"))):
            found[str(number)] = None
    return found
