"""One million accounts on a text of 300 tokens, two threads; beside numpy, vectorised, on a part of the accounts.

Nobody else traces, so there is no peer to time: the reference is what one writes first, SipHash-2-4 and the mixer over
whole arrays of keys in numpy, a block of keys at a time, on 1/50 of the accounts and scaled up. Both sum the exact same
scores of the same positions. Deriving a million account keys (once an epoch, then kept) is timed apart. Rounds
alternate; medians are reported. `all_positions_s` scores all 300 tokens, `seconds` the account layer's half of them.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time

os.environ.setdefault("NUMBA_NUM_THREADS", "2")

import numpy as np

ACCOUNTS, TOKENS, PART, ROUNDS, BLOCK = 1_000_000, 300, 50, 3, 2048
TARGET_S = 2.0
SCHEMES = ("gumbel-dual", "kgw", "synthid")


def main() -> int:
    import numba

    from spiritsafe.watermark._native import NativeDetector
    from spiritsafe.watermark._prf import key_words

    numba.set_num_threads(min(2, numba.config.NUMBA_NUM_THREADS))
    ids = np.random.default_rng(0).integers(0, 49_152, TOKENS).astype(np.uint32)
    results = {}
    for scheme in SCHEMES:
        keys = _keys(scheme)
        detector = NativeDetector(keys)
        reading = detector.read(ids, 0)
        theirs = reading.take(detector.account_positions(reading, 0))
        began = time.perf_counter()
        account_keys = keys.account_keys(keys.current, range(1, ACCOUNTS + 1), scheme)
        derive_s = time.perf_counter() - began
        words = key_words(account_keys)
        part = words[: ACCOUNTS // PART]
        detector.marks.totals(words[:64], theirs.windows, theirs.tokens)  # compiles
        ours, whole, reference = [], [], []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            totals = detector.account_totals(reading, 0, account_keys)[1]
            ours.append(time.perf_counter() - began)
            began = time.perf_counter()
            detector.marks.totals(words, reading.windows, reading.tokens)
            whole.append(time.perf_counter() - began)
            began = time.perf_counter()
            expected = _numpy_totals(scheme, part, theirs.windows, theirs.tokens)
            reference.append((time.perf_counter() - began) * PART)
        np.testing.assert_allclose(totals[: len(part)], expected, rtol=1e-12)
        results[scheme] = {
            "seconds": round(statistics.median(ours), 3),
            "all_positions_s": round(statistics.median(whole), 3),
            "numpy_s": round(statistics.median(reference), 1),
            "ratio": round(statistics.median(b / a for a, b in zip(ours, reference, strict=True)), 1),
            "derive_s": round(derive_s, 2),
            "positions": len(theirs.tokens),
        }
    met = results["gumbel-dual"]["all_positions_s"] <= TARGET_S
    print(
        json.dumps(
            {
                "benchmark": "watermark_trace",
                "peer": f"numpy {np.__version__}, same statistic",
                "unit": f"seconds for {ACCOUNTS} accounts x {TOKENS} tokens",
                "schemes": results,
                "ratio": results["gumbel-dual"]["ratio"],
                "target": {"all_positions_s": TARGET_S},
                "met": met,
                "threads": numba.get_num_threads(),
                "rounds": ROUNDS,
                "load": round(os.getloadavg()[0], 1),
            }
        )
    )
    return 0 if met else 1


def _keys(scheme: str):  # type: ignore[no-untyped-def]
    import tempfile
    from pathlib import Path

    from spiritsafe.keys import new_keys

    with tempfile.TemporaryDirectory() as folder:
        return new_keys(Path(folder) / "keys.json", marking={"scheme": scheme})


def _numpy_totals(scheme, keys_K2, windows_Nk, tokens_N):  # type: ignore[no-untyped-def]
    """Sums (K,) over N positions, (block of keys) × N arrays at a time."""
    messages = [windows_Nk[:, 0].astype(np.uint64) | windows_Nk[:, 1].astype(np.uint64) << np.uint64(32)]
    messages.append(np.full(len(tokens_N), 8 << 56, np.uint64))
    step = (tokens_N.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    out = []
    for low in range(0, len(keys_K2), BLOCK):
        k0, k1 = keys_K2[low : low + BLOCK].T[:, :, None]
        z = _siphash(k0, k1, messages) + step
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        if scheme == "synthid":
            scores = np.bitwise_count(z >> np.uint64(34)).astype(np.float64)
        else:
            u = ((z >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
            scores = -np.log(1.0 - u) if scheme == "gumbel-dual" else (u < 0.25).astype(np.float64)
        out.append(scores.sum(1))
    return np.concatenate(out)


def _siphash(k0, k1, messages):  # type: ignore[no-untyped-def]
    def rotl(x, b):  # type: ignore[no-untyped-def]
        return x << np.uint64(b) | x >> np.uint64(64 - b)

    def rounds(v, count):  # type: ignore[no-untyped-def]
        v0, v1, v2, v3 = v
        for _ in range(count):
            v0 = v0 + v1
            v2 = v2 + v3
            v1, v3 = rotl(v1, 13) ^ v0, rotl(v3, 16) ^ v2
            v0 = rotl(v0, 32) + v3
            v2 = v2 + v1
            v1, v3 = rotl(v1, 17) ^ v2, rotl(v3, 21) ^ v0
            v2 = rotl(v2, 32)
        return v0, v1, v2, v3

    v = tuple(
        k ^ np.uint64(c)
        for k, c in (
            (k0, 0x736F6D6570736575),
            (k1, 0x646F72616E646F6D),
            (k0, 0x6C7967656E657261),
            (k1, 0x7465646279746573),
        )
    )
    for message in messages:
        v = rounds((v[0], v[1], v[2], v[3] ^ message), 2)
        v = (v[0] ^ message, v[1], v[2], v[3])
    v = rounds((v[0], v[1], v[2] ^ np.uint64(0xFF), v[3]), 4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


if __name__ == "__main__":
    sys.exit(main())
