"""Every metric of the guard. docs/guard/operations.md explains them; a test holds it to this list."""

from __future__ import annotations

from spiritsafe.serve._tallies import Family

__all__ = ["FAMILIES"]

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_ADDED = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)

FAMILIES = (
    Family("spiritsafe_requests", "counter", "Requests answered.", ("kind", "model", "status")),
    Family("spiritsafe_input_tokens", "counter", "Prompt tokens charged.", ("kind", "model")),
    Family("spiritsafe_output_tokens", "counter", "Completion tokens charged.", ("kind", "model")),
    Family("spiritsafe_dollars", "counter", "What customers were charged, in USD.", ("kind", "model")),
    Family("spiritsafe_request_seconds", "histogram", "From a request's arrival to its reply's end.", ("kind",),
           edges=_SECONDS),
    Family("spiritsafe_added_seconds", "histogram", "Of that, what was not spent waiting for an upstream.",
           edges=_ADDED),
    Family("spiritsafe_refusals", "counter", "What a rule refused; shadow: would have refused.", ("rule", "shadow")),
    Family("spiritsafe_stream_chunks", "counter", "Events sent in streams."),
    Family("spiritsafe_in_flight", "gauge", "Requests being answered."),
    Family("spiritsafe_upstream_requests", "counter", "Requests sent upstream; status 0: no answer.",
           ("upstream", "status")),
    Family("spiritsafe_upstream_first_byte_seconds", "histogram", "Until an upstream's first byte.", ("upstream",),
           edges=_SECONDS),
    Family("spiritsafe_upstream_seconds", "histogram", "Until an upstream's last byte.", ("upstream",),
           edges=_SECONDS),
    Family("spiritsafe_upstream_up", "gauge", "1: it answers health checks.", ("upstream",), "min"),
    Family("spiritsafe_ledger_backlog_rows", "gauge", "Ledger rows that wait to be written."),
    Family("spiritsafe_ledger_healthy", "gauge", "0: the last write failed; rows are kept and tried again.", (), "min"),
    Family("spiritsafe_ledger_commit_seconds", "gauge", "How long the last group of rows took to write.", (), "max"),
    Family("spiritsafe_journal_bytes", "gauge", "Size of the crash journals.", (), "max"),
    Family("spiritsafe_limiter_up", "gauge", "0: the state of the limits (Redis) is away.", (), "min"),
    Family("spiritsafe_canaries_served", "counter", "Canary prompts answered with their published variant."),
    Family("spiritsafe_twins", "counter", "Requests answered twice.", ("outcome",)),
    Family("spiritsafe_webhook_outbox", "gauge", "Webhook messages not yet delivered.", (), "max"),
    Family("spiritsafe_log_lines_dropped", "counter", "Log lines dropped because stderr did not keep up."),
    Family("spiritsafe_worker_cpu_seconds", "counter", "CPU time of a worker.", (), "each"),
    Family("spiritsafe_worker_resident_bytes", "gauge", "Memory of a worker.", (), "each"),
    Family("spiritsafe_worker_loop_lag_seconds", "gauge", "How late a worker's event loop ran last.", (), "each"),
    Family("spiritsafe_build_info", "gauge", "The version that runs.", ("version",), "max"),
)  # fmt: skip
